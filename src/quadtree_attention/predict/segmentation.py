"""Segmentation: an image in, a class for each pixel out."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.images import read_image
from ..data.recognition.masks import preprocess
from ..extras import require
from ..files import atomic_write, checked_suffix
from ..formats import MASK_SUFFIXES
from ..models.segmentation import SegmenterConfig, SemanticFPN
from .base import Predictor
from .finite import check_finite
from .results import Result

NUMBERS = 2**26  # logits at the image's own size that are in memory at a time


@dataclass(frozen=True, eq=False)
class Segmentation(Result):
    """A class for each pixel of an image.

    labels: uint8 ``[H, W]``, numbers of classes; probabilities: float32 ``[H, W]``, of these classes; names: of all classes, by number.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    names: tuple[str, ...]

    def shares(self) -> dict[str, float]:
        """The share of the image that each class covers, largest first, without those of 0."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.names))
        order = np.argsort(-counts, kind="stable")
        return {self.names[n]: float(counts[n] / self.labels.size) for n in order if counts[n]}

    def save(self, path: str | Path) -> None:
        """Write the labels to a .png with the palette of `class_colors`, whole or not at all."""
        checked_suffix(path, MASK_SUFFIXES)
        image = require("PIL.Image", "vision").fromarray(self.labels)
        image.putpalette(class_colors(self.names).ravel().tolist())
        with atomic_write(path) as temporary:
            image.save(temporary)


def class_colors(names: Sequence[str]) -> np.ndarray:
    """A colour for each class, ``[classes, 3]`` uint8 RGB: black for a first class "background", else hues far from those of their neighbours."""
    first = int(bool(names) and names[0] == "background")
    golden = (5**0.5 - 1) / 2
    colors = [
        colorsys.hsv_to_rgb((0.02 + n * golden) % 1, (0.75, 0.5, 0.95)[n % 3], (1.0, 0.9, 0.75)[n // 3 % 3])
        for n in range(len(names) - first)
    ]
    return np.rint(255 * np.array([(0, 0, 0)] * first + colors).reshape(-1, 3)).astype(np.uint8)


class Segmenter(Predictor):
    """Classifies each pixel of an image.

    Args:
        model: the network. It stays as it is, and its weights are shared.
        device: where to run it, such as "cpu" or "cuda"; by default where it is. Another device takes a copy of the weights.
    """

    model: SemanticFPN

    @property
    def config(self) -> SegmenterConfig:
        """Names of the classes, and how images are prepared."""
        return self.model.config

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path = "segment_tiny", *, device: str | torch.device | None = None
    ) -> Segmenter:
        """Load weights: a name of `quadtree models`; the path of a file, or of a folder of `save_pretrained`; or "hf-hub:OWNER/NAME". The
        device is by default a CUDA GPU if there is one.

        Raises:
            ValueError, OSError: an unknown name, a file that cannot be read, weights that do not fit.
        """
        return cls._loaded(name_or_path, "segmenter", device)

    def segment(self, image: Any) -> Segmentation:
        """Find the likeliest class of each pixel.

        As published: the image is resized for the network; the logits are resized to that size, and then to the image's own, bilinearly.

        Args:
            image: of any size; a path, PIL image, numpy array or torch tensor, see `data.images.read_image`.

        Raises:
            ValueError, OSError: a bad image, or a network that gives NaN or infinity.
        """
        picture = read_image(image)
        with torch.inference_mode():
            logits = self.model(preprocess(picture, **self.config.preprocessing)[None].to(self.device))
            check_finite(logits)
            labels, probabilities = likeliest(logits.float(), picture.shape[:2])
        return Segmentation(labels.cpu().numpy(), probabilities.cpu().numpy(), tuple(self.config.labels))


def likeliest(logits: Tensor, size: tuple[int, int], numbers: int = NUMBERS) -> tuple[Tensor, Tensor]:
    """Resize logits ``[1, classes, h, w]`` to ``size``, and find the likeliest class (uint8) and its probability, ``[H, W]`` each.

    Works on a few classes at a time, so that at most about ``numbers`` logits of that size are in memory.
    """
    best = torch.full(size, -torch.inf, device=logits.device)
    total = torch.zeros(size, device=logits.device)  # of exp(logit - best)
    labels = torch.zeros(size, dtype=torch.uint8, device=logits.device)
    step = max(1, numbers // (size[0] * size[1]))
    for start in range(0, logits.shape[1], step):
        some = logits[:, start : start + step]
        if some.shape[-2:] != size:
            some = F.interpolate(some, size, mode="bilinear", align_corners=False)
        value, index = some[0].max(0)
        larger = torch.maximum(best, value)
        total = total * (best - larger).exp() + (some[0] - larger).exp().sum(0)
        labels = torch.where(value > best, (index + start).to(torch.uint8), labels)
        best = larger
    return labels, 1 / total
