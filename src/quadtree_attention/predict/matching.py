"""Two images in, matches out: images of any kind, results in their pixels."""

from __future__ import annotations

import copy
import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.images import read_image
from ..errors import InputError
from ..extras import require
from ..files import atomic_write
from ..formats import MATCH_SUFFIXES
from ..models.loftr import LoFTR
from ..weights.hub import HubMixin
from .alignment import View, best_look, whole_view
from .confidence import kept, probability
from .device import check_device
from .finite import check_finite
from .refinement import refine as refined_matches

# kind -> (fewest matches, default threshold in matched pixels)
GEOMETRIES = {"homography": (4, 3.0), "fundamental": (8, 1.0), "essential": (6, 1.0)}


@dataclass(frozen=True, eq=False)
class Geometry:
    """What `Matches.geometry` found.

    kind: "homography", "fundamental" or "essential"; model: ``[3, 3]`` float64, None if there is none; inliers: bool ``[M]``.
    """

    kind: str
    model: np.ndarray | None
    inliers: np.ndarray


@dataclass(frozen=True, eq=False)
class Matches:
    """Points of image 0 and where they are in image 1.

    keypoints0, keypoints1: float32 ``[M, 2]``, (x, y) in pixels of the images as given, pixel centres at integers; confidence: float32
    ``[M]``; pixel: how many pixels of the images as given one pixel of the images as matched covers, the larger of the two.
    """

    keypoints0: np.ndarray
    keypoints1: np.ndarray
    confidence: np.ndarray
    pixel: float = 1.0

    def __len__(self) -> int:
        return len(self.confidence)

    def geometry(self, kind: str, *, threshold: float | None = None, intrinsics: Any = None) -> Geometry:
        """Fit one model to all matches by MAGSAC++ (OpenCV's USAC_MAGSAC); the same matches give the same result.

        Args:
            kind: "homography" (a plane, or a camera that only turned: ``x1 ~ H x0``), "fundamental" (any rigid scene: ``x1' F x0 = 0``) or
                "essential" (the same, for calibrated cameras).
            threshold: largest error of an inlier in pixels of the images as given; by default 3 for "homography" and 1 for the others,
                times ``pixel``.
            intrinsics: for "essential": a matrix ``[3, 3]`` or (fx, fy, cx, cy) for both images, or a pair of those.

        Returns:
            `Geometry`; with too few matches, or when nothing fits, its model is None and there are no inliers.

        Raises:
            ValueError: an unknown kind, or options that do not fit it.
        """
        if kind not in GEOMETRIES:
            raise InputError(f"geometry is {kind!r}, expected one of {', '.join(GEOMETRIES)}")
        if (intrinsics is not None) != (kind == "essential"):
            raise InputError(
                f"intrinsics {'are missing' if intrinsics is None else 'were given'} with geometry {kind!r}; 'essential' alone takes them"
            )
        if threshold is not None and not 0 < threshold < float("inf"):
            raise InputError(f"geometry threshold is {threshold}, expected pixels above 0")
        fewest, default = GEOMETRIES[kind]
        threshold = default * self.pixel if threshold is None else threshold
        cameras = _cameras(intrinsics) if kind == "essential" else None
        nothing = Geometry(kind, None, np.zeros(len(self), bool))
        if len(self) < fewest:
            return nothing
        cv2 = require("cv2", "vision")
        points0, points1 = self.keypoints0.astype(np.float64), self.keypoints1.astype(np.float64)
        robust = {"confidence": 0.9999, "maxIters": 10_000}
        try:
            if kind == "homography":
                model, mask = cv2.findHomography(points0, points1, cv2.USAC_MAGSAC, threshold, **robust)
            elif kind == "fundamental":
                model, mask = cv2.findFundamentalMat(points0, points1, cv2.USAC_MAGSAC, threshold, *robust.values())
            else:
                (f0, c0), (f1, c1) = cameras  # type: ignore[misc]
                model, mask = cv2.findEssentialMat(
                    (points0 - c0) / f0,
                    (points1 - c1) / f1,
                    np.eye(3),
                    method=cv2.USAC_MAGSAC,
                    prob=robust["confidence"],
                    threshold=threshold / np.mean([f0, f1]),
                )
        except cv2.error:  # points from which no model can be made, such as all in one place
            return nothing
        if model is None or model.shape[0] < 3 or not np.isfinite(model[:3]).all():
            return nothing
        return Geometry(kind, model[:3], mask.ravel().astype(bool))

    def save(self, path: str | Path, geometry: Geometry | None = None) -> None:
        """Write to .npz, .json or .csv; ``geometry`` adds its inliers and, but for .csv, its model. The file is whole or not there."""
        path = Path(path)
        if path.suffix.lower() not in MATCH_SUFFIXES:
            raise InputError(f"{path}: unknown suffix {path.suffix!r}, expected {' or '.join(MATCH_SUFFIXES)}")
        with atomic_write(path) as temporary:
            _WRITERS[path.suffix.lower()](temporary, self, geometry)


class Matcher(HubMixin):
    """Matches two images with a `LoFTR`.

    Args:
        model: the network.
        device: where to run it, such as "cpu" or "cuda"; by default a CUDA GPU if there is one.
    """

    model: LoFTR

    def __init__(self, model: LoFTR, device: str | torch.device | None = None) -> None:
        self.device = check_device(device)
        model = model.eval().to(self.device)
        self.model = model.to(memory_format=torch.channels_last)  # convolutions take half the time so

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path = "tiny", *, device: str | torch.device | None = None, **options: Any
    ) -> Matcher:
        """Load weights: "tiny" comes with the package; "indoor" and "outdoor" are downloaded once; or the path of a file.

        options: fields of `LoFTRConfig` to change that the weights do not depend on: ``topk=(32, 16)``, ``respect_masks=False``, ...

        Raises:
            ValueError, OSError: an unknown name or option, a file that cannot be read, weights that do not fit.
        """
        from ..weights import load

        checked = check_device(device)
        return cls(load(name_or_path, "matcher", options=options), checked)

    def match(
        self,
        image0: Any,
        image1: Any,
        *,
        max_size: int = 640,
        threshold: float | None = None,
        pad_to: int | None = None,
        align: bool = True,
        refine: bool = True,
    ) -> Matches:
        """Match two images.

        Args:
            image0, image1: of any size each; a path, PIL image, numpy array or torch tensor, see `data.images.read_image`.
            max_size: images are shrunk until their longer side is at most this many pixels. Larger finds more and takes longer. After
                it, each side must have at least 32 pixels.
            threshold: matches need a confidence above it, 0..1. By default it is what the model was made with; if that knows how sure refined matches
                are, 0.85, or less where this leaves fewer than 1000 matches, down to 0.3.
            pad_to: pad both images at the right and the bottom to squares of this side, with masks, as in the published evaluation on
                MegaDepth. Attention sees the padding where the configuration has ``respect_masks=False``, as the
                published network does; else it changes little, and only near the edges.
            align: where the matches say that the images differ in scale (by a fifth) or turn (by 10 degrees), match them again with the
                coarser one brought to the other's scale and turn; where they do not agree at all, try quarter turns and other scales first. The
                matches that agree most with each other are kept. An addition to LoFTR, whose published evaluations go without; it takes two
                to three times as long where it takes place.
            refine: move points of image 0 to what is distinctive near them, and align the patches around matches, to a fraction of a pixel; see
                `predict.refinement`. With a model that is calibrated, such as "tiny", the confidence is then the probability that a match is
                within 3 pixels of the truth. An addition to LoFTR too.

        Returns:
            `Matches`, in pixels of the images as given.

        Raises:
            ValueError, OSError: bad images or options, or weights that give no numbers, in one line.
        """
        model, calibration = self.model, self.model.config.calibration if refine else ()
        if threshold is not None:
            if not 0 <= threshold <= 1:
                raise InputError(f"threshold is {threshold}, expected 0..1")
            model = copy.copy(model)  # shares the weights
            least = min(threshold, model.config.threshold) if calibration else threshold
            model.config = replace(model.config, threshold=least)
        images = read_image(image0), read_image(image1)
        names = (
            str(given) if isinstance(given, str | Path) else name
            for given, name in ((image0, "image0"), (image1, "image1"))
        )
        view0, view1 = (whole_view(image, max_size, name) for image, name in zip(images, names, strict=True))
        find = partial(self._find, model, pad_to=pad_to)
        if align:
            view0, view1, points0, points1, confidence, _ = best_look(images, (view0, view1), find)
        else:
            points0, points1, confidence = find(view0, view1)
        if refine:
            refined = refined_matches(view0.gray, view1.gray, points0, points1, confidence, self.device)
            points0, points1 = refined.points0, refined.points1
            if calibration:
                confidence = probability(calibration, confidence, refined)
                rows = kept(confidence) if threshold is None else confidence > threshold
                points0, points1, confidence = points0[rows], points1[rows], confidence[rows]
        return Matches(view0.given(points0), view1.given(points1), confidence, pixel=max(view0.pixel, view1.pixel))

    def _find(
        self, model: LoFTR, view0: View, view1: View, pad_to: int | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Points of either view, float64 ``[M, 2]``, in its pixels, and confidences, float32 ``[M]``."""
        (gray0, mask0), (gray1, mask1) = (_network_input(view, pad_to) for view in (view0, view1))
        masks = [None if mask is None else mask.to(self.device) for mask in (mask0, mask1)]
        with torch.inference_mode():
            features = model.encode(gray0.to(self.device), gray1.to(self.device), *masks)
            check_finite([features.coarse0, features.coarse1])  # what is not a number is no match
            found = model.matches(features)
        check_finite(found)
        points0, points1 = (found[name].double().cpu().numpy() for name in ("keypoints0", "keypoints1"))
        return points0, points1, found["confidence"].float().cpu().numpy()


def _network_input(view: View, pad_to: int | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Image ``[1, 1, H, W]`` and, if parts of it are not to be matched, its mask, bool ``[1, H, W]``; padded with zeros to a square."""
    gray = torch.from_numpy(view.gray)[None, None]
    mask = None if view.valid is None else torch.from_numpy(view.valid)[None]
    if pad_to is None:
        return gray, mask
    height, width = gray.shape[-2:]
    if pad_to < max(height, width):
        raise InputError(f"pad_to is {pad_to}, expected at least the images' longer side, {max(height, width)} pixels")
    beyond = (0, pad_to - width, 0, pad_to - height)
    mask = gray.new_ones(1, height, width, dtype=torch.bool) if mask is None else mask
    return torch.nn.functional.pad(gray, beyond), torch.nn.functional.pad(mask, beyond)


def _cameras(intrinsics: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Focal lengths ``[2]`` and principal point ``[2]`` of both cameras."""
    wanted = "expected a [3, 3] matrix or (fx, fy, cx, cy), or a pair of those"
    try:
        array = np.asarray(intrinsics, np.float64)
    except (ValueError, TypeError):
        pair: Sequence[Any] = intrinsics
        if not isinstance(intrinsics, list | tuple) or len(intrinsics) != 2:
            raise InputError(f"intrinsics are {intrinsics!r}, {wanted}") from None
    else:
        pair = (
            [array, array]
            if array.shape in ((3, 3), (4,))
            else list(array)
            if array.ndim > 1 and len(array) == 2
            else []
        )
    cameras = []
    for one in pair:
        one = np.asarray(one, np.float64)
        if one.shape == (3, 3):
            one = one[[0, 1, 0, 1], [0, 1, 2, 2]]
        if one.shape == (4,) and np.isfinite(one).all() and (one[:2] > 0).all():
            cameras.append((one[:2], one[2:]))
    if len(cameras) != 2:
        raise InputError(f"intrinsics are {np.asarray(intrinsics, object).tolist()}, {wanted}; focal lengths above 0")
    return cameras


def _write_npz(path: Path, matches: Matches, geometry: Geometry | None) -> None:
    arrays = {"keypoints0": matches.keypoints0, "keypoints1": matches.keypoints1, "confidence": matches.confidence}
    if geometry is not None:
        arrays["inliers"] = geometry.inliers
        if geometry.model is not None:
            arrays[geometry.kind] = geometry.model
    with path.open("wb") as file:  # savez would add a suffix to names such as x.NPZ
        np.savez(file, **arrays)  # type: ignore[arg-type]  # no name of an array is allow_pickle, the one option


def _write_json(path: Path, matches: Matches, geometry: Geometry | None) -> None:
    data: dict[str, Any] = {
        "keypoints0": _rounded(matches.keypoints0, 3),
        "keypoints1": _rounded(matches.keypoints1, 3),
        "confidence": _rounded(matches.confidence, 4),
    }
    if geometry is not None:
        data["inliers"] = geometry.inliers.tolist()
        data[geometry.kind] = None if geometry.model is None else geometry.model.tolist()
    path.write_text(json.dumps(data) + "\n", encoding="utf-8")


def _write_csv(path: Path, matches: Matches, geometry: Geometry | None) -> None:
    columns = ["x0", "y0", "x1", "y1", "confidence"]
    points = np.concatenate([matches.keypoints0, matches.keypoints1], 1)
    rows = [[*xy, c] for xy, c in zip(_rounded(points, 3), _rounded(matches.confidence, 4), strict=True)]
    if geometry is not None:
        columns.append("inlier")
        rows = [[*row, int(inlier)] for row, inlier in zip(rows, geometry.inliers, strict=True)]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])


def _rounded(array: np.ndarray, decimals: int) -> list:
    return array.astype(np.float64).round(decimals).tolist()


_WRITERS = {".npz": _write_npz, ".json": _write_json, ".csv": _write_csv}
