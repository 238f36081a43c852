"""What matchers find in pairs, before anything is judged; kept in a folder, so that other figures need no second run of a network."""

from __future__ import annotations

import hashlib
import io
import json
import re
import time
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.images import read_image, resize_longest
from ..data.matching.pairs import Pair
from ..data.warp import resize_matrix, with_long_side
from ..errors import InputError
from ..extras import require
from ..files import atomic_write, write_text
from . import metrics
from .matchers import MatchFunction


@dataclass(frozen=True)
class Prediction:
    """Matches of a pair, in the pixels of its geometry, and how they came about.

    keypoints0, keypoints1: ``[M, 2]``; confidence: ``[M]``; scale: size of the images in the geometry over their size as matched, the larger of
    both; size0: (height, width) of image 0 in pixels of the geometry; ms: time of matching.
    """

    keypoints0: np.ndarray
    keypoints1: np.ndarray
    confidence: np.ndarray
    scale: float
    size0: tuple[int, int]
    ms: float


def predict(matcher: MatchFunction, pair: Pair, max_size: int, multiple: int | None = None) -> Prediction:
    """Resize and turn a pair's images, match them, and map the keypoints back.

    max_size: larger images are shrunk to it. multiple: as published for MegaDepth, smaller ones are enlarged to it too, and both sides are
    rounded down to a multiple of this.
    """
    image0, to_matched0, size0 = _prepare(pair, 0, max_size, multiple)
    image1, to_matched1, _ = _prepare(pair, 1, max_size, multiple)
    start = time.perf_counter()
    kpts0, kpts1, confidence = matcher(image0, image1)
    ms = 1000 * (time.perf_counter() - start)
    kpts0, kpts1 = (metrics.warp_points(np.linalg.inv(A), k) for A, k in ((to_matched0, kpts0), (to_matched1, kpts1)))
    scales = [np.sqrt(abs(np.linalg.det(A[:2, :2]))) for A in (to_matched0, to_matched1)]
    return Prediction(kpts0, kpts1, np.asarray(confidence), float(1 / min(scales)), size0, ms)


class PredictionFolder:
    """Predictions of one model in a folder, a file for each pair, each there whole or not at all; those of other settings lie beside it.

    Args:
        root: holds a folder for each model and its settings, whose ``settings.json`` says what they are.
        model: its name.
        settings: all that predictions depend on, such as the weights and the size of the images.
    """

    def __init__(self, root: Path, model: str, settings: dict[str, Any]) -> None:
        self.content = json.dumps({"model": model, **settings}, sort_keys=True)
        digest = hashlib.blake2b(self.content.encode(), digest_size=6).hexdigest()
        self.folder = root / f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', Path(model).stem)[:60]}-{digest}"

    def get(self, index: int, pair: Pair) -> Prediction | None:
        """The prediction for pair number ``index``, if it is there, and of a pair of this name.

        Raises:
            ValueError: the file is damaged.
        """
        path = self.folder / f"{index:06d}.npz"
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as values:
                if str(values["pair"]) != pair.name:
                    return None
                kpts0, kpts1, confidence = (values[name] for name in ("keypoints0", "keypoints1", "confidence"))
                height, width = (int(side) for side in values["size0"])
                scale = float(values["scale" if "scale" in values else "pixel"])  # the latter: its former name
                return Prediction(kpts0, kpts1, confidence, scale, (height, width), float(values["ms"]))
        except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
            raise InputError(f"{path} is damaged ({error}); remove it, and the pair is matched again") from None

    def add(self, index: int, pair: Pair, prediction: Prediction) -> None:
        """Keep the prediction for pair number ``index``."""
        if not (self.folder / "settings.json").exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / "settings.json", f"{self.content}\n")
        content = io.BytesIO()
        np.savez(content, pair=np.asarray(pair.name), **asdict(prediction))
        with atomic_write(self.folder / f"{index:06d}.npz") as temporary:
            temporary.write_bytes(content.getvalue())


def _prepare(
    pair: Pair, side: int, max_size: int, multiple: int | None
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Image ``side`` of a pair to match, the [3, 3] map of geometry pixels to its pixels, and (height, width) of the geometry."""
    image, size, turns = (pair.image0, pair.size0, pair.turns0) if side == 0 else (pair.image1, pair.size1, pair.turns1)
    name = str(image) if isinstance(image, str | Path) else "image"
    cv2 = require("cv2", "vision")
    pixels = read_image(image, upright=pair.upright)
    if size is not None and size != pixels.shape[1::-1]:
        shrinks = pair.smooth and size[0] < pixels.shape[1]
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    height, width = pixels.shape[:2]
    A = {  # np.rot90 turns counterclockwise: the right edge comes to the top
        0: np.eye(3),
        1: np.array([[0.0, 1, 0], [-1, 0, width - 1], [0, 0, 1]]),
        2: np.array([[-1.0, 0, width - 1], [0, -1, height - 1], [0, 0, 1]]),
        3: np.array([[0.0, -1, height - 1], [1, 0, 0], [0, 0, 1]]),
    }[turns % 4]
    turned = np.ascontiguousarray(np.rot90(pixels, turns))
    if multiple is None:
        resized, _ = resize_longest(turned, max_size, name)
    else:
        resized = cv2.resize(
            turned, with_long_side(turned.shape[1::-1], max_size, multiple), interpolation=cv2.INTER_LINEAR
        )
    return resized, resize_matrix(turned.shape[1::-1], resized.shape[1::-1]) @ A, (height, width)
