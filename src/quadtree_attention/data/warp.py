"""Views of images under homographies, and sizes of resized copies."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np


def warped_view(image: np.ndarray, view: np.ndarray, size: tuple[int, int], border: int) -> np.ndarray:
    """Resample an image to a view; pixels of the view that cover several of the image average them.

    Args:
        image: ``[H, W]`` or ``[H, W, 3]``, uint8 or float32.
        view: ``[3, 3]``, pixels of the view to pixels of the image; pixel centres at integers.
        size: (height, width) of the view.
        border: OpenCV's border mode, such as ``cv2.BORDER_CONSTANT``.
    """
    height, width = size
    step = _local_step(view, (width - 1) / 2, (height - 1) / 2)
    if step > 1.25:  # averaged first: bilinear interpolation alone would leave pixels out
        sides = image.shape[1::-1]
        small = tuple(max(1, round(side / step)) for side in sides)
        ratio = np.array(small) / sides
        view = shift_matrix((ratio - 1) / 2) @ np.diag([*ratio, 1.0]) @ view
        image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    return cv2.warpPerspective(
        image, view, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=border
    )


def shift_matrix(vector: Sequence[float] | np.ndarray) -> np.ndarray:
    """``[3, 3]``: moves pixels (x, y) by a vector ``[2]``."""
    return np.array([[1.0, 0.0, vector[0]], [0.0, 1.0, vector[1]], [0.0, 0.0, 1.0]])


def resize_matrix(old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
    """The [3, 3] map of pixels of an image of size old to those of its resized copy; sizes (width, height)."""
    sx, sy = new[0] / old[0], new[1] / old[1]
    return np.array([[sx, 0, (sx - 1) / 2], [0, sy, (sy - 1) / 2], [0, 0, 1]])


def with_long_side(size: tuple[int, int], pixels: int, multiple: int) -> tuple[int, int]:
    """(width, height) with a longer side of ``pixels``, both sides then rounded down to a multiple, as published for MegaDepth."""
    factor = pixels / max(size)
    width, height = (max(round(side * factor) // multiple, 1) * multiple for side in size)
    return width, height


def with_short_side(size: tuple[int, int], pixels: int) -> tuple[int, int]:
    """(width, height) with a shorter side of ``pixels``."""
    factor = pixels / min(size)
    return round(size[0] * factor), round(size[1] * factor)


def _local_step(view: np.ndarray, x: float, y: float) -> float:
    """Pixels of the image a pixel of the view at (x, y): the root of the determinant of the Jacobian."""
    w = view[2] @ (x, y, 1.0)
    return float(np.sqrt(abs(np.linalg.det(view) / w**3)))
