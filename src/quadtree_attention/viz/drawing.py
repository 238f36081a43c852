"""Shared by all pictures: colours, sizes, text, and writing to a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import InputError
from ..extras import require
from ..files import atomic_write

GAP, BAR = 12, 44  # pixels between images, and of the legend below them
BACKGROUND = (18, 20, 26)

INK, FAINT = (232, 234, 240), (150, 155, 168)
# The colour scale for confidence, low to high, in about equal visual steps, all bright enough to stand out.
SCALE = np.array([(123, 97, 255), (56, 149, 255), (36, 205, 196), (122, 230, 110), (255, 236, 92)], np.float64)


_LONGEST = {".webp": 16383, ".jpg": 65500, ".jpeg": 65500}  # pixels of a side


def confidence_colors(confidence: np.ndarray, low: float, high: float) -> np.ndarray:
    """Colours ``[M, 3]`` uint8 RGB of confidences ``[M]``: violet at ``low`` and below, over blue and green, to yellow at ``high``."""
    place = np.clip((confidence - low) / max(high - low, 1e-9), 0, 1) * (len(SCALE) - 1)
    anchors = np.arange(len(SCALE))
    return np.stack([np.interp(place, anchors, SCALE[:, channel]) for channel in range(3)], -1).round().astype(np.uint8)


def save_picture(picture: np.ndarray, path: str | Path) -> None:
    """Write ``[H, W, 3]`` uint8 RGB to an image file, whole or not at all; the suffix gives the format.

    Raises:
        InputError: a side is longer than the format allows.
    """
    image = require("PIL.Image", "vision").fromarray(picture)
    suffix = Path(path).suffix.lower()
    longest = _LONGEST.get(suffix, max(image.size))
    if max(image.size) > longest:
        raise InputError(
            f"{path} would have {image.width}x{image.height} pixels, {suffix} holds {longest} per side; write a .png"
        )
    with atomic_write(path) as temporary:
        image.save(temporary, **({} if suffix == ".png" else {"quality": 92}))


def unit(picture: np.ndarray, side: int = 1000) -> float:
    """The factor, at least 1, by which text and lines are larger than in a picture with a longer side of ``side`` pixels."""
    return max(1.0, max(picture.shape[:2]) / side)


def shrunk(image: np.ndarray, max_side: int | None) -> tuple[np.ndarray, tuple[float, float]]:
    """Shrink an image ``[H, W, 3]`` until its longer side has at most ``max_side`` pixels (None: any); returns it and its scale in x and y.

    Unlike `resize_longest`, it takes images of any size.
    """
    if max_side is None:
        return image, (1.0, 1.0)
    height, width = image.shape[:2]
    factor = min(max_side / max(height, width), 1)
    size = max(round(width * factor), 1), max(round(height * factor), 1)
    pil = require("PIL.Image", "vision")
    return np.asarray(pil.fromarray(image).resize(size, pil.Resampling.BICUBIC)), (size[0] / width, size[1] / height)
