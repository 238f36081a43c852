"""What is measured: functions that match two images, SIFT among them.

A match function takes two uint8 RGB images ``[H, W, 3]`` and returns keypoints0 ``[M, 2]``, keypoints1 ``[M, 2]`` and confidence ``[M]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..extras import require

MatchFunction = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


def sift_matcher(features: int = 4096, ratio: float = 0.8, contrast: float = 0.02) -> MatchFunction:
    """OpenCV's SIFT, mutual nearest neighbours and the ratio test; confidence is one minus the ratio.

    contrast: half of OpenCV's default, so that weakly textured images give features too.
    """
    cv2 = require("cv2", "vision")
    sift = cv2.SIFT_create(nfeatures=features, contrastThreshold=contrast, enable_precise_upscale=True)

    def match(image0: np.ndarray, image1: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        (kpts0, desc0), (kpts1, desc1) = (
            sift.detectAndCompute(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None) for image in (image0, image1)
        )
        if len(kpts0) < 2 or len(kpts1) < 2:
            return np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0)
        # squared distances [N0, N1]; rounding may leave them just below zero
        squared = (desc0**2).sum(1)[:, None] + (desc1**2).sum(1) - 2 * desc0 @ desc1.T
        two = np.argpartition(squared, 1, axis=1)[:, :2]
        best, second = np.sqrt(np.take_along_axis(squared, two, axis=1).clip(0)).T
        nearest = two[:, 0]
        ratios = best / np.maximum(second, 1e-6)
        kept = (squared.argmin(axis=0)[nearest] == np.arange(len(desc0))) & (ratios < ratio)
        points0 = np.array([k.pt for k in kpts0])[kept]
        points1 = np.array([k.pt for k in kpts1])[nearest[kept]]
        return points0, points1, 1 - ratios[kept]

    return match


def load_matcher(
    name: str,
    *,
    options: Mapping[str, Any] | None = None,
    padding: str = "none",
    pad_to: int | None = None,
    align: bool = False,
    refine: bool = False,
    device: str | None = None,
) -> MatchFunction:
    """A match function by name: "sift", or any name or path that Matcher.from_pretrained takes.

    options: fields of LoFTRConfig to change. padding: "masked" and "attended" pad both images to a square of pad_to
    pixels, as the published MegaDepth evaluation does; "attended" lets attention see the padding, as the published
    quadtree network does. align, refine: see Matcher.match. device: see Matcher. SIFT has none of these.
    """
    if name == "sift":
        return sift_matcher()
    from ..predict.matching import Matcher

    options = dict(options or {})
    if padding != "none":
        options["respect_masks"] = padding == "masked"
    pad_to = None if padding == "none" else pad_to
    matcher = Matcher.from_pretrained(name, device=device, **options)
    return match_function(matcher, pad_to=pad_to, align=align, refine=refine)


def match_function(
    matcher: Any, *, pad_to: int | None = None, align: bool = False, refine: bool = False
) -> MatchFunction:
    """What is measured of a `Matcher`: it matches the images as they are given to it, see load_matcher."""

    def match(image0: np.ndarray, image1: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        longest = max(*image0.shape[:2], *image1.shape[:2])
        found = matcher.match(image0, image1, max_size=longest, pad_to=pad_to, align=align, refine=refine)
        return found.keypoints0, found.keypoints1, found.confidence

    return match
