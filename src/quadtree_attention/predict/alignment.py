"""Aligns two images that differ in scale or rotation, so that the network matches them better.

LoFTR compares cells of one size in both images, and learns from images that differ moderately. Where one shows things twice as large as the other,
it finds few matches and places them badly. But even these tell how the images differ: the coarser image is resampled to the scale and rotation of
the other, and a second look finds the rest. Where hardly any match has neighbours that agree with it, the rotation may be more than the network
can bear: then small copies are tried in quarter turns and at other scales, which takes as long as two looks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from ..data.images import resize_longest, to_gray
from ..extras import require
from .refinement import support

MIN_SCALE, MIN_ROTATION = 1.2, 10.0  # images that differ by less, the latter in degrees, are not matched again
MAX_SCALE = 8.0  # a larger change of scale is taken for a mistake
MIN_SUPPORT = 8  # fewest matches that agree on a change
TOLERANCE = 0.03  # how far they may deviate from it, as a share of the longer side: parallax and perspective
LOST = 0.08  # mean support of matches below which other rotations and scales are tried: wrong pairs have up to .05
FAINT = 1.5  # the same, for the sum over all matches
TRIAL, ZOOM = 256, 2.0  # longer side of the copies that are tried, and how much smaller one of them is made
SMALL = 48  # least side of such a copy, in pixels

Masks = tuple[np.ndarray | None, np.ndarray | None]  # of two images as given: bool [H, W], True = valid


class Found(NamedTuple):
    """Matches of two views: points ``[M, 2]`` in pixels of either, and confidences ``[M]``."""

    points0: np.ndarray
    points1: np.ndarray
    confidence: np.ndarray


Find = Callable[["View", "View"], Found]


@dataclass(frozen=True, eq=False)
class View:
    """An image as the network sees it.

    gray: float32 ``[H, W]`` in 0..1.
    to_given: ``[3, 3]``, maps its pixels (x, y) to those of the image as given.
    valid: bool ``[H, W]``, False outside the image and where that is masked; None if all is valid.
    """

    gray: np.ndarray
    to_given: np.ndarray
    valid: np.ndarray | None = None

    @property
    def scale(self) -> float:
        """Pixels of the image as given along one pixel, on the axis on which there are more."""
        return float(np.linalg.norm(self.to_given[:2, :2], 2))

    def map_to_given(self, points: np.ndarray) -> np.ndarray:
        """Map pixels ``[M, 2]`` to those of the image as given, float32 ``[M, 2]``."""
        return _transformed(self.to_given, points).astype(np.float32)


Views = tuple[View, View]


class Look(NamedTuple):
    """Two views, the matches found in them, and how well each is supported by others, ``[M]``."""

    view0: View
    view1: View
    found: Found
    support: np.ndarray

    @property
    def evidence(self) -> float:
        """Confidence times support, summed over all matches: of two looks at the same images, the one with more is right."""
        return float((self.found.confidence * self.support).sum())

    @property
    def lost(self) -> bool:
        """Whether the matches hardly agree with each other."""
        return self.evidence <= max(LOST * float(self.found.confidence.sum()), FAINT)

    def points_in(self, view0: View, view1: View) -> tuple[np.ndarray, np.ndarray]:
        """Map the points to pixels of other views of the same images."""
        return tuple(
            _transformed(np.linalg.inv(other.to_given) @ mine.to_given, points)
            for other, mine, points in (
                (view0, self.view0, self.found.points0),
                (view1, self.view1, self.found.points1),
            )
        )  # type: ignore[return-value]  # two of them


def best_look(
    images: tuple[np.ndarray, np.ndarray], views: Views, find: Find, found: Found, masks: Masks = (None, None)
) -> Look:
    """Match two images again if the matches say that they differ in scale or rotation, or do not agree at all; return the look with most evidence.

    Args:
        images: as given, ``[H, W, 3]`` uint8 each.
        views: the whole of each.
        find: gives the matches of two views.
        found: those of ``views``.
        masks: of the images as given.
    """
    look = _supported(*views, found)
    for hint in (look, None):
        if hint is None:
            if not look.lost:
                break
            hint = _best(_supported(*tried, find(*tried)) for tried in trial_views(views))
            if hint is None or hint.lost:
                break
        aligned = aligned_views(images, views, *hint.points_in(*views), masks)
        if aligned is not None:
            look = max(look, _supported(*aligned, find(*aligned)), key=lambda one: one.evidence)
    return look


def _supported(view0: View, view1: View, found: Found) -> Look:
    return Look(view0, view1, found, support(*found))


def _best(looks: Iterator[Look]) -> Look | None:
    """The look with most evidence; stops at the first that is good enough."""
    best = None
    for look in looks:
        if best is None or look.evidence > best.evidence:
            best = look
        if best.evidence > 3 * LOST * float(best.found.confidence.sum()):
            break
    return best


def trial_views(views: Views) -> Iterator[Views]:
    """Small copies of both views: the second one in quarter turns, and either of them smaller than the other."""
    for zoom0, zoom1 in ((1.0, 1.0), (1.0, ZOOM), (ZOOM, 1.0)):
        small = [shrunk_view(view, TRIAL / zoom) for view, zoom in zip(views, (zoom0, zoom1), strict=True)]
        if min(min(view.gray.shape) for view in small) < SMALL:
            continue
        for turns in (1, 3, 2, 0):
            yield small[0], rotated_view(small[1], turns)


def shrunk_view(view: View, longest: float) -> View:
    """Shrink a view until its longer side has at most ``longest`` pixels."""
    height, width = view.gray.shape
    share = min(1.0, longest / max(height, width))
    size = max(1, round(width * share)), max(1, round(height * share))
    across, down = width / size[0], height / size[1]
    to_view = np.array([[across, 0, (across - 1) / 2], [0, down, (down - 1) / 2], [0, 0, 1]])
    gray = F.interpolate(torch.from_numpy(view.gray)[None, None], size[::-1], mode="bilinear", antialias=True)
    return View(gray[0, 0].numpy(), view.to_given @ to_view, _nearest(view.valid, (size[1], size[0])))


def rotated_view(view: View, turns: int) -> View:
    """Rotate a view by quarter turns, counterclockwise."""
    height, width = view.gray.shape
    to_view = {
        0: np.eye(3),
        1: np.array([[0.0, -1, width - 1], [1, 0, 0], [0, 0, 1]]),
        2: np.array([[-1.0, 0, width - 1], [0, -1, height - 1], [0, 0, 1]]),
        3: np.array([[0.0, 1, 0], [-1, 0, height - 1], [0, 0, 1]]),
    }[turns]
    valid = None if view.valid is None else np.ascontiguousarray(np.rot90(view.valid, turns))
    return View(np.ascontiguousarray(np.rot90(view.gray, turns)), view.to_given @ to_view, valid)


def _transformed(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:2, :2].T + matrix[:2, 2]


def _nearest(mask: np.ndarray | None, size: tuple[int, int]) -> np.ndarray | None:
    """Resize a mask ``[H, W]`` to a size (height, width); None stays None."""
    if mask is None:
        return None
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64) for new, old in zip(size, mask.shape, strict=True)
    )
    return mask[rows[:, None], columns]


def whole_view(image: np.ndarray, max_size: int, name: str = "image", mask: np.ndarray | None = None) -> View:
    """View a whole image ``[H, W, 3]`` uint8 and its mask, shrunk until its longer side is at most ``max_size``. Raises like `resize_longest`."""
    resized, (across, down) = resize_longest(image, max_size, name)
    # Pixel centres are at integers: pixel x is (x + 0.5) / scale - 0.5 of the image.
    to_given = np.array([[1 / across, 0, 0.5 / across - 0.5], [0, 1 / down, 0.5 / down - 0.5], [0, 0, 1]])
    return View(to_gray(resized), to_given, _nearest(mask, resized.shape[:2]))


def aligned_views(
    images: tuple[np.ndarray, np.ndarray],
    views: Views,
    points0: np.ndarray,
    points1: np.ndarray,
    masks: Masks = (None, None),
) -> Views | None:
    """Align two images in scale and rotation: the finer one's view stays, and the other image is resampled to its frame.

    Args:
        images: as given, ``[H, W, 3]`` uint8 each.
        views: the whole of each.
        points0, points1: matches, pixels ``[M, 2]`` of the views.
        masks: of the images as given.

    Returns:
        The views, or None if too few matches agree, or the images hardly differ.
    """
    change = similarity(points0, points1, max(views[1].gray.shape))
    if change is None:
        return None
    scale, rotation = math.hypot(change[0, 0], change[1, 0]), math.degrees(math.atan2(change[1, 0], change[0, 0]))
    if max(scale, 1 / scale) < MIN_SCALE and abs(rotation) < MIN_ROTATION:
        return None
    if scale < 1:
        return views[0], _resampled(images[1], masks[1], views[1].to_given @ change, views[0].gray.shape)
    inverse = np.linalg.inv(change)
    return _resampled(images[0], masks[0], views[0].to_given @ inverse, views[1].gray.shape), views[1]


def similarity(points0: np.ndarray, points1: np.ndarray, size: int) -> np.ndarray | None:
    """Estimate the similarity ``[3, 3]`` from image 0 to image 1 that most matches roughly agree with; None if hardly any do.

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


def _resampled(image: np.ndarray, mask: np.ndarray | None, to_given: np.ndarray, size: tuple[int, ...]) -> View:
    """Resample an image and its mask to a frame of ``size`` (height, width)."""
    cv2 = require("cv2", "vision")
    from ..data.warp import warped_view

    height, width = size
    seen = warped_view(image, to_given, (height, width), cv2.BORDER_CONSTANT)
    everywhere = np.ones(image.shape[:2], np.uint8) if mask is None else mask.astype(np.uint8)
    valid = cv2.warpPerspective(
        everywhere, to_given, (width, height), flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    ).astype(bool)
    return View(to_gray(seen), to_given, None if valid.all() else valid)
