"""Classification: an image in, its likeliest classes out."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from ..data.images import read_image
from ..errors import InputError
from ..extras import require
from ..files import checked_suffix, write_text
from ..formats import CLASSIFICATION_SUFFIXES
from ..models.classifier import ClassifierConfig
from .base import Predictor
from .finite import check_finite
from .results import Result


@dataclass(frozen=True, eq=False)
class Classification(Result):
    """The likeliest classes of an image, best first.

    labels: names of the classes; probabilities: float32 ``[K]``; indices: int64 ``[K]``, numbers of the classes.
    """

    labels: tuple[str, ...]
    probabilities: np.ndarray
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


class Classifier(Predictor):
    """Classifies images with any timm network.

    Args:
        model: the network, ``[B, C, H, W]`` to logits ``[B, classes]``, with its `ClassifierConfig` as ``config``. It stays as it is, and its
            weights are shared.
        device: where to run it, such as "cpu" or "cuda"; by default where it is. Another device takes a copy of the weights.

    Raises:
        ValueError: a network without a classification head, such as a detector's backbone.
    """

    _front_matter: ClassVar = {"library_name": "timm", "pipeline_tag": "image-classification"}

    def __init__(self, model: torch.nn.Module, device: str | torch.device | None = None) -> None:
        config: Any = model.config
        if not config.labels:
            raise InputError(
                f"this {config.model} has no classes, expected a classifier; it is the backbone of a detector or segmenter"
            )
        super().__init__(model, device)
        create_transform = require("timm.data", "classify").create_transform
        self._transform = create_transform(
            tuple(config.input_size),
            mean=config.mean,
            std=config.std,
            interpolation=config.interpolation,
            crop_pct=config.crop_pct,
        )

    @property
    def config(self) -> ClassifierConfig:
        """Names of the classes, and how images are prepared."""
        config: Any = self.model.config
        return config

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path = "classify_tiny", *, device: str | torch.device | None = None
    ) -> Classifier:
        """Load weights: "classify_tiny" comes with the package; "quadtree_b0" .. "quadtree_b4" are downloaded once; a name of timm's; the path of a
        file, or of a folder of `save_pretrained`; or "hf-hub:OWNER/NAME", a repository of the Hub, of this package or of timm. The device
        is by default a CUDA GPU if there is one.

        Raises:
            ValueError, OSError: an unknown name, a file that cannot be read, weights that do not fit.
        """
        return cls._loaded(name_or_path, "classifier", device)

    def classify(self, image: Any, *, top: int = 5) -> Classification:
        """Find the ``top`` likeliest classes of an image.

        Args:
            image: of any size; a path, PIL image, numpy array or torch tensor, see `data.images.read_image`.
            top: number of classes; all if there are fewer.

        Raises:
            ValueError, OSError: a bad image or option, or a network that gives NaN or infinity.
        """
        if top < 1:
            raise InputError(f"top is {top}, expected at least 1")
        given, _ = self.prepare(image)
        with torch.inference_mode():
            logits = self.model(given.to(self.device))[0]
        check_finite(logits)
        found = logits.float().softmax(0).topk(min(top, len(self.config.labels)))
        indices = found.indices.cpu().numpy()
        return Classification(tuple(self.config.labels[i] for i in indices), found.values.cpu().numpy(), indices)

    def prepare(self, image: Any) -> tuple[torch.Tensor, tuple[float, float, float, float]]:
        """An image as the network sees it, ``[1, C, H, W]``: shrunk, and its middle cut out.

        Also where that lies in the image as given: x and y of its left upper corner, and pixels of the image that one of its pixels covers, in x and
        y. Arguments and errors as of `classify`.
        """
        pixels = read_image(image)
        picture = require("PIL.Image", "vision").fromarray(pixels)
        if self.config.input_size[0] == 1:
            picture = picture.convert("L")
        given = self._transform(picture)[None]
        height, width = given.shape[-2:]
        # timm brings the shorter side to this, the longer one in proportion, and cuts out the middle.
        short = math.floor(max(height, width) / self.config.crop_pct)
        scale = min(pixels.shape[:2]) / short
        left, top = (
            max(side - seen * scale, 0) / 2 for side, seen in ((pixels.shape[1], width), (pixels.shape[0], height))
        )
        return given, (left, top, scale, scale)

    def _hub_config(self) -> dict[str, Any]:
        """In timm's format, so that its ``create_model("hf-hub:...", pretrained=True)`` can load the repository too."""
        config, known = self.config, getattr(self.model, "pretrained_cfg", {})
        return {
            "architecture": config.model.partition(".")[0],
            "num_classes": len(config.labels),
            "num_features": self.model.num_features,
            "label_names": list(config.labels),
            "model_args": {"in_chans": config.input_size[0], **config.options},
            "pretrained_cfg": {
                **{name: known[name] for name in ("classifier", "first_conv") if known.get(name)},
                "num_classes": len(config.labels),
                "input_size": list(config.input_size),
                "mean": list(config.mean),
                "std": list(config.std),
                "interpolation": config.interpolation,
                "crop_pct": config.crop_pct,
            },
        }


def save_classifications(names: Sequence[str], found: Sequence[Classification], path: str | Path) -> None:
    """Write the classes of images with these names to .json or .csv, whole or not at all."""
    suffix = checked_suffix(path, CLASSIFICATION_SUFFIXES)
    rows = [
        [(label, round(float(p), 5)) for label, p in zip(one.labels, one.probabilities, strict=True)] for one in found
    ]
    if suffix == ".json":
        data = [
            {"image": name, "classes": [{"label": label, "probability": p} for label, p in row]}
            for name, row in zip(names, rows, strict=True)
        ]
        write_text(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")
        return
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(["image", "rank", "label", "probability"])
    for name, row in zip(names, rows, strict=True):
        writer.writerows([name, rank, label, p] for rank, (label, p) in enumerate(row, 1))
    write_text(path, file.getvalue())
