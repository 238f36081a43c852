"""What pictures share: colours, sizes, text, and the way to a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..extras import require
from ..files import atomic_write

GAP, BAR = 12, 44  # pixels between images, and of the legend below them
BACKGROUND = (18, 20, 26)

INK, FAINT = (232, 234, 240), (150, 155, 168)
# Anchors of the colour scale for confidence, low to high, about equally far apart to the eye and all bright enough to stand out.
SCALE = np.array([(123, 97, 255), (56, 149, 255), (36, 205, 196), (122, 230, 110), (255, 236, 92)], np.float64)


def confidence_colors(confidence: np.ndarray, low: float, high: float) -> np.ndarray:
    """Colours ``[M, 3]`` uint8 RGB of confidences ``[M]``: violet at ``low`` and below, over blue and green, to yellow at ``high``."""
    place = np.clip((confidence - low) / max(high - low, 1e-9), 0, 1) * (len(SCALE) - 1)
    anchors = np.arange(len(SCALE))
    return np.stack([np.interp(place, anchors, SCALE[:, channel]) for channel in range(3)], -1).round().astype(np.uint8)


def save_picture(picture: np.ndarray, path: str | Path) -> None:
    """Write ``[H, W, 3]`` uint8 RGB to an image file, whole or not at all; the suffix says the format."""
    image = require("PIL.Image", "vision").fromarray(picture)
    with atomic_write(path) as temporary:
        image.save(temporary, **({} if temporary.suffix == ".png" else {"quality": 92}))


def shrunk(image: np.ndarray, max_side: int) -> tuple[np.ndarray, tuple[float, float]]:
    """An image ``[H, W, 3]`` whose longer side has at most ``max_side`` pixels, and its scale in x and y.

    Unlike `resize_longest` it takes images of any size.
    """
    height, width = image.shape[:2]
    factor = min(max_side / max(height, width), 1)
    size = max(round(width * factor), 1), max(round(height * factor), 1)
    pil = require("PIL.Image", "vision")
    return np.asarray(pil.fromarray(image).resize(size, pil.Resampling.BICUBIC)), (size[0] / width, size[1] / height)
