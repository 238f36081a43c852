"""What a matcher sees of two images: at first the whole of each, then the coarser one brought to the scale and the turn of the other.

LoFTR compares cells of one size in both images, and learns from images that differ moderately. Where one shows things twice as large as the other,
it finds few matches and places them badly. But even these tell how the images differ, and a second look at images that no longer do finds the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..data.images import resize_longest, to_gray
from ..extras import require

MIN_SCALE, MIN_TURN = 1.2, 10.0  # images that differ by less, the latter in degrees, are not looked at again
MAX_SCALE = 8.0  # more is taken for a mistake
MIN_SUPPORT = 8  # matches that agree with a change
TOLERANCE = 0.03  # how far they may be from it, as a share of the longer side: parallax and perspective


@dataclass(frozen=True, eq=False)
class View:
    """An image as the network sees it.

    gray: float32 ``[H, W]`` in 0..1; to_given: ``[3, 3]``, its pixels (x, y) to those of the image as given; valid: bool ``[H, W]``, False
    where it shows nothing of the image, None if there is no such place.
    """

    gray: np.ndarray
    to_given: np.ndarray
    valid: np.ndarray | None = None

    @property
    def pixel(self) -> float:
        """Pixels of the image as given that a pixel covers, along the axis in which these are more."""
        return float(np.linalg.norm(self.to_given[:2, :2], 2))

    def given(self, points: np.ndarray) -> np.ndarray:
        """Pixels ``[M, 2]`` to float32 ``[M, 2]`` of the image as given."""
        return (points @ self.to_given[:2, :2].T + self.to_given[:2, 2]).astype(np.float32)


def whole_view(image: np.ndarray, max_size: int, name: str = "image") -> View:
    """All of an image ``[H, W, 3]`` uint8, shrunk until its longer side is at most ``max_size``; raises as `resize_longest`."""
    resized, (across, down) = resize_longest(image, max_size, name)
    # Pixel centres are at integers: pixel x is (x + 0.5) / scale - 0.5 of the image.
    to_given = np.array([[1 / across, 0, 0.5 / across - 0.5], [0, 1 / down, 0.5 / down - 0.5], [0, 0, 1]])
    return View(to_gray(resized), to_given)


def aligned_views(
    images: tuple[np.ndarray, np.ndarray], views: tuple[View, View], points0: np.ndarray, points1: np.ndarray
) -> tuple[View, View] | None:
    """Views of two images in which these have one scale and turn: the finer one's as it was, and what its frame shows of the other image.

    Args:
        images: as given, ``[H, W, 3]`` uint8 each.
        views: the whole of each.
        points0, points1: matches, pixels ``[M, 2]`` of the views.

    Returns:
        The views, or None: too few matches agree, or the images hardly differ.
    """
    change = similarity(points0, points1, max(views[1].gray.shape))
    if change is None:
        return None
    scale, turn = math.hypot(change[0, 0], change[1, 0]), math.degrees(math.atan2(change[1, 0], change[0, 0]))
    if max(scale, 1 / scale) < MIN_SCALE and abs(turn) < MIN_TURN:
        return None
    if scale < 1:
        return views[0], _view_through(images[1], views[1].to_given @ change, views[0].gray.shape)
    return _view_through(images[0], views[0].to_given @ np.linalg.inv(change), views[1].gray.shape), views[1]


def similarity(points0: np.ndarray, points1: np.ndarray, size: int) -> np.ndarray | None:
    """The scale, turn and shift ``[3, 3]`` from image 0 to image 1 that most matches agree with, roughly; None if hardly any do.

    Args:
        points0, points1: pixels ``[M, 2]``.
        size: longer side of image 1 in pixels.
    """
    if len(points0) < MIN_SUPPORT:
        return None
    cv2 = require("cv2", "vision")
    found, agrees = cv2.estimateAffinePartial2D(
        points0.astype(np.float64),
        points1.astype(np.float64),
        method=cv2.RANSAC,
        ransacReprojThreshold=TOLERANCE * size,
        maxIters=5000,
        confidence=0.999,
    )
    if found is None or agrees.sum() < MIN_SUPPORT:
        return None
    scale = math.hypot(found[0, 0], found[1, 0])
    return np.vstack([found, [0, 0, 1]]) if 1 / MAX_SCALE < scale < MAX_SCALE else None


def _view_through(image: np.ndarray, to_given: np.ndarray, size: tuple[int, ...]) -> View:
    """What a frame of ``size`` (height, width) shows of an image."""
    cv2 = require("cv2", "vision")
    from ..data.warp import warped_view

    height, width = size
    seen = warped_view(image, to_given, (height, width), cv2.BORDER_CONSTANT)
    everywhere = np.ones(image.shape[:2], np.uint8)
    valid = cv2.warpPerspective(
        everywhere, to_given, (width, height), flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    ).astype(bool)
    return View(to_gray(seen), to_given, None if valid.all() else valid)
