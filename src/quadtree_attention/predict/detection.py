"""Detection: an image in, boxes and masks of objects out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..data.images import read_image
from ..errors import InputError
from ..extras import require
from ..files import checked_suffix, write_text
from ..formats import DETECTION_SUFFIXES
from ..models.detection import DetectorConfig
from .base import Predictor
from .finite import check_outputs
from .results import Result

if TYPE_CHECKING:
    from ..models.detection.model import MaskRCNN, RetinaNet


@dataclass(frozen=True, eq=False)
class Detections(Result):
    """The objects found in an image, highest score first.

    boxes: float32 ``[N, 4]``, x0, y0, x1, y1 in pixels of the image, from its left and upper edge.
    labels: names of the classes; scores: float32 ``[N]`` in 0..1.
    indices: int64 ``[N]``, numbers of the classes in the detector's list.
    size: (height, width) of the image.
    masks: bool ``[N, H, W]``; None if the detector gives no masks.
    """

    boxes: np.ndarray
    labels: tuple[str, ...]
    scores: np.ndarray
    indices: np.ndarray
    size: tuple[int, int]
    masks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def counts(self) -> dict[str, int]:
        """The number of objects of each class, most frequent first."""
        names = sorted(set(self.labels), key=lambda name: (-self.labels.count(name), name))
        return {name: self.labels.count(name) for name in names}

    def to_coco(
        self, image_id: int | str, category_ids: Sequence[int], file_name: str | None = None
    ) -> list[dict[str, Any]]:
        """Entries in COCO's result format: bbox is x, y, width, height; masks are run lengths. category_name and file_name are for human readers.

        Args:
            image_id: number of the image.
            category_ids: number of each class, see `DetectorConfig.ids`.
            file_name: of the image; left out if None.
        """
        out = []
        for n, (x0, y0, x1, y1) in enumerate(self.boxes.astype(float).round(2).tolist()):
            entry: dict[str, Any] = {
                "image_id": image_id,
                **({} if file_name is None else {"file_name": file_name}),
                "category_id": category_ids[int(self.indices[n])],
                "category_name": self.labels[n],
                "bbox": [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)],
                "score": round(float(self.scores[n]), 5),
            }
            if self.masks is not None:
                code = require("pycocotools.mask", "detect").encode(np.asfortranarray(self.masks[n], np.uint8))
                entry["segmentation"] = {"size": list(code["size"]), "counts": code["counts"].decode("ascii")}
            out.append(entry)
        return out


class Detector(Predictor):
    """Finds objects in images: boxes, and with a Mask R-CNN also masks.

    Args:
        model: the network, see `models.detection.model`. It stays as it is, and its weights are shared.
        device: where to run it, such as "cpu" or "cuda"; by default where it is. Another device takes a copy of the weights.
    """

    model: RetinaNet | MaskRCNN

    def __init__(self, model: RetinaNet | MaskRCNN, device: str | torch.device | None = None) -> None:
        super().__init__(model, device)
        # Boxes with NaN scores are below every threshold, so the detections would not show them.
        for name in ("head", "rpn.head", "roi_heads.box_predictor", "roi_heads.mask_predictor"):
            if name in dict(self.model.named_modules()):
                check_outputs(self.model.get_submodule(name))

    @property
    def config(self) -> DetectorConfig:
        """Names of the classes, how images are prepared, and which detections are kept."""
        return self.model.config

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path = "detect_tiny", *, device: str | torch.device | None = None
    ) -> Detector:
        """Load weights: "detect_tiny" comes with the package; "retinanet_quadtree_b0" .. "mask_rcnn_quadtree_b4_1x" are downloaded once; the path
        of a file, or of a folder of `save_pretrained`; or "hf-hub:OWNER/NAME". The device is by default a CUDA GPU if there is one.

        Raises:
            ValueError, OSError: an unknown name, a file that cannot be read, weights that do not fit.
        """
        return cls._loaded(name_or_path, "detector", device)

    def detect(self, image: Any, *, score: float | None = None) -> Detections:
        """Find objects in an image.

        Args:
            image: of any size; a path, PIL image, numpy array or torch tensor, see `data.images.read_image`.
            score: least score of a detection. The model's configuration sets a lower limit and the default (0.05 as published, for average
                precision; pictures look best from 0.3).

        Raises:
            ValueError, OSError: a bad image or option, or a network that gives NaN or infinity.
        """
        if score is not None and not 0 <= score <= 1:
            raise InputError(f"score is {score}, expected 0 to 1")
        pixels = torch.from_numpy(np.array(read_image(image))).permute(2, 0, 1)
        with torch.inference_mode():
            (found,) = self.model([pixels.to(self.device) / 255])
        kept = found["scores"] >= (score or 0)
        values = {name: value[kept].cpu().numpy() for name, value in found.items()}
        return Detections(
            values["boxes"].astype(np.float32),
            tuple(self.config.labels[n] for n in values["labels"]),
            values["scores"].astype(np.float32),
            values["labels"],
            (pixels.shape[1], pixels.shape[2]),
            values.get("masks"),
        )


def save_detections(entries: Sequence[dict[str, Any]], path: str | Path) -> None:
    """Write entries of `Detections.to_coco` to a .json file, one per line, whole or not at all."""
    checked_suffix(path, DETECTION_SUFFIXES)
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
    write_text(path, f"[\n{lines}\n]\n" if entries else "[]\n")


def image_numbers(path: str | Path) -> dict[str, int]:
    """Read the number of each image from an annotation file in COCO's format, by its file_name, with folders.

    Raises:
        ValueError, OSError: another format, or two images with one name.
    """
    from ..data.recognition.annotations import read_json

    content = read_json(Path(path))
    try:
        named = [(PurePosixPath(entry["file_name"]).as_posix(), index(entry["id"])) for entry in content["images"]]
    except (KeyError, TypeError):
        raise InputError(f"{path} has no images with file_name and id, expected COCO's format") from None
    numbers: dict[str, int] = {}
    for name, number in named:
        if numbers.setdefault(name, number) != number:
            raise InputError(f"{path} has {name} twice, as images {numbers[name]} and {number}, expected it once")
    return numbers
