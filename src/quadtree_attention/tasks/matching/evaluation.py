"""Measure matchers on pairs with known geometry: homography, relative-pose and stereo protocols, SIFT beside them.

A matcher is any function (image0, image1) -> (keypoints0 [M, 2], keypoints1 [M, 2], confidence [M]) of uint8 RGB images
[H, W, 3]. All methods see the same images, shrunk to max_size, and the same robust estimators. Errors are in pixels of
the images as given (HPatches: of the resized images, as usual there).
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...data import pairs as layouts
from ...data.images import read_image, resize_longest
from ...data.pairs import HomographyPair, Pair, PosePair, StereoPair, resize_matrix
from ...data.synthetic import SyntheticHomographies
from ...extras import require
from ...files import atomic_write
from . import metrics

MatchFunction = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
Row = dict[str, Any]
PIXELS = (3, 5, 10)  # thresholds of the homography and stereo AUC
DEGREES = (5, 10, 20)  # thresholds of the pose AUC
RIGHT = 3.0  # pixels within which a match is right
OUT_SUFFIXES = (".json", ".csv", ".md")


# ---- one pair ------------------------------------------------------------------------------------


class Found(NamedTuple):
    """Matches in the pixels of a pair's geometry, and how they came about."""

    kpts0: np.ndarray  # [M, 2]
    kpts1: np.ndarray  # [M, 2]
    ms: float
    pixel: float  # pixels of the geometry in one pixel of the image as matched, the larger of both images
    size0: tuple[int, int]  # (height, width) of image 0 in pixels of the geometry


def find_matches(matcher: MatchFunction, pair: Pair, max_size: int) -> Found:
    """Resize and turn a pair's images, match them, and map the keypoints back."""
    image0, to_matched0, size0 = _prepare(pair.image0, pair.size0, pair.turns0, max_size)
    image1, to_matched1, _ = _prepare(pair.image1, pair.size1, pair.turns1, max_size)
    start = time.perf_counter()
    kpts0, kpts1, _ = matcher(image0, image1)
    ms = 1000 * (time.perf_counter() - start)
    scales = [np.sqrt(abs(np.linalg.det(A[:2, :2]))) for A in (to_matched0, to_matched1)]
    back0, back1 = np.linalg.inv(to_matched0), np.linalg.inv(to_matched1)
    return Found(
        metrics.warp_points(back0, kpts0), metrics.warp_points(back1, kpts1), ms, float(1 / min(scales)), size0
    )


def judge_homography(pair: Pair, found: Found) -> Row:
    """Corner error of the homography found by MAGSAC, and how many matches are within 3 pixels of the true one."""
    assert isinstance(pair, HomographyPair)
    H, _ = metrics.estimate_homography(found.kpts0, found.kpts1, threshold=3.0 * found.pixel)
    error = metrics.homography_corner_error(H, pair.homography, found.size0)
    distances = metrics.reprojection_errors(found.kpts0, found.kpts1, pair.homography)
    return {"corner_error": error, "right": int((distances <= RIGHT).sum()), "matches": len(distances)}


def judge_pose(pair: Pair, found: Found) -> Row:
    """Angular errors of the pose found by RANSAC at 0.5 pixels, and how many matches keep to the epipolar geometry."""
    assert isinstance(pair, PosePair)
    pose = metrics.estimate_pose(found.kpts0, found.kpts1, pair.K0, pair.K1)
    error = metrics.PoseError(np.inf, np.inf)
    if pose is not None:
        error = metrics.relative_pose_error(pair.T_0to1, pose.R, pose.t)
    E = metrics.essential_matrix(pair.T_0to1)
    distances = metrics.symmetric_epipolar_distance(found.kpts0, found.kpts1, E, pair.K0, pair.K1)
    return {
        "rotation_error": error.rotation,
        "translation_error": error.translation,
        "right_5e-4": int((distances < 5e-4).sum()),
        "right_1e-4": int((distances < 1e-4).sum()),
        "inliers": 0 if pose is None else int(pose.inliers.sum()),
        "matches": len(distances),
    }


def judge_stereo(pair: Pair, found: Found) -> Row:
    """Errors of the matches whose left keypoint has a known disparity; the others are not counted."""
    assert isinstance(pair, StereoPair)
    disparity = pair.read_disparity()
    if disparity.shape != found.size0:
        raise ValueError(
            f"{pair.name}: disparity is {disparity.shape[1]}x{disparity.shape[0]}, expected the left image's "
            f"{found.size0[1]}x{found.size0[0]}"
        )
    errors = metrics.disparity_errors(found.kpts0, found.kpts1, disparity)
    errors = errors[~np.isnan(errors)]
    areas = metrics.error_auc(errors, PIXELS)
    return {**areas, "right": int((errors <= RIGHT).sum()), "judged": len(errors), "matches": len(found.kpts0)}


def _prepare(
    image: layouts.Image, size: layouts.Size | None, turns: int, max_size: int
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """The image to match, the [3, 3] map of geometry pixels to its pixels, and (height, width) of the geometry."""
    name = str(image) if isinstance(image, str | Path) else "image"
    pixels = read_image(image)
    if size is not None and size != pixels.shape[1::-1]:
        shrinks = size[0] < pixels.shape[1]
        cv2 = require("cv2", "vision")
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    height, width = pixels.shape[:2]
    A = {  # np.rot90 turns counterclockwise: the right edge comes to the top
        0: np.eye(3),
        1: np.array([[0.0, 1, 0], [-1, 0, width - 1], [0, 0, 1]]),
        2: np.array([[-1.0, 0, width - 1], [0, -1, height - 1], [0, 0, 1]]),
        3: np.array([[0.0, -1, height - 1], [1, 0, 0], [0, 0, 1]]),
    }[turns % 4]
    turned = np.ascontiguousarray(np.rot90(pixels, turns))
    shrunk, _ = resize_longest(turned, max_size, name)
    return shrunk, resize_matrix(turned.shape[1::-1], shrunk.shape[1::-1]) @ A, (height, width)


# ---- all pairs -----------------------------------------------------------------------------------


def summarise_homography(rows: Sequence[Row]) -> Row:
    """AUC of the corner error at 3, 5, 10 pixels, mean share of right matches (0 without any), mean numbers, median ms."""
    areas = metrics.error_auc([row["corner_error"] for row in rows], PIXELS)
    return {**areas, "right@3px": _share(rows, "right", "matches"), **_counts(rows, "right", "matches")}


def summarise_pose(rows: Sequence[Row]) -> Row:
    """AUC of the larger of both angular errors at 5, 10, 20 degrees, epipolar precision, mean number, median ms."""
    areas = metrics.error_auc([max(row["rotation_error"], row["translation_error"]) for row in rows], DEGREES)
    precision = {f"prec@{t}": _share(rows, f"right_{t}", "matches") for t in ("5e-4", "1e-4")}
    return {**areas, **precision, **_counts(rows, "inliers", "matches")}


def summarise_stereo(rows: Sequence[Row]) -> Row:
    """Means over pairs: AUC of the match error at 3, 5, 10 pixels, share of right matches, numbers; median ms."""
    areas = {f"auc@{t}": float(np.mean([row[f"auc@{t}"] for row in rows])) for t in PIXELS}
    return {**areas, "right@3px": _share(rows, "right", "judged"), **_counts(rows, "right", "judged", "matches")}


def _share(rows: Sequence[Row], part: str, whole: str) -> float:
    return float(np.mean([row[part] / row[whole] if row[whole] else 0.0 for row in rows]))


def _counts(rows: Sequence[Row], *names: str) -> Row:
    means = {name: float(np.mean([row[name] for row in rows])) for name in names}
    return {**means, "ms": float(np.median([row["ms"] for row in rows])), "pairs": len(rows)}


class Protocol(NamedTuple):
    judge: Callable[[Pair, Found], Row]
    summarise: Callable[[Sequence[Row]], Row]


PROTOCOLS = {
    "homography": Protocol(judge_homography, summarise_homography),
    "pose": Protocol(judge_pose, summarise_pose),
    "stereo": Protocol(judge_stereo, summarise_stereo),
}


def evaluate_homography(matcher: MatchFunction, pairs: Iterable[HomographyPair], *, max_size: int = 640) -> Row:
    """Measure a matcher on pairs with known homographies -> see summarise_homography."""
    return summarise_homography(list(_rows("homography", matcher, pairs, max_size)))


def evaluate_pose(matcher: MatchFunction, pairs: Iterable[PosePair], *, max_size: int = 640) -> Row:
    """Measure a matcher on pairs with known relative poses, as published with LoFTR -> see summarise_pose."""
    return summarise_pose(list(_rows("pose", matcher, pairs, max_size)))


def evaluate_stereo(matcher: MatchFunction, pairs: Iterable[StereoPair], *, max_size: int = 640) -> Row:
    """Measure a matcher on rectified pairs with known disparity -> see summarise_stereo."""
    return summarise_stereo(list(_rows("stereo", matcher, pairs, max_size)))


def _rows(protocol: str, matcher: MatchFunction, pairs: Iterable[Pair], max_size: int) -> Iterator[Row]:
    for pair in pairs:
        found = find_matches(matcher, pair, max_size)
        yield {**PROTOCOLS[protocol].judge(pair, found), "ms": found.ms}


# ---- matchers ------------------------------------------------------------------------------------


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


def load_matcher(name: str) -> MatchFunction:
    """A match function by name: "sift", or any name or path that Matcher.from_pretrained takes."""
    if name == "sift":
        return sift_matcher()
    from ...predict import Matcher

    model = Matcher.from_pretrained(name)

    def match(image0: np.ndarray, image1: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        found = model.match(image0, image1, max_size=max(*image0.shape[:2], *image1.shape[:2]))
        return found.keypoints0, found.keypoints1, found.confidence

    return match
