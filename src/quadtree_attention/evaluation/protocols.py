"""What is measured of one pair with known geometry, and of many: homography, relative pose and stereo.

Errors are in pixels of the images as given (HPatches: of the resized images, as usual there), angles in degrees.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..data.images import read_image, resize_longest
from ..data.matching.pairs import HomographyPair, Pair, PosePair, StereoPair
from ..data.warp import resize_matrix, with_long_side
from ..errors import InputError
from ..extras import require
from . import metrics

MatchFunction = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
Row = dict[str, Any]
PIXELS = (3, 5, 10)  # thresholds of the homography and stereo AUC
DEGREES = (5, 10, 20)  # thresholds of the pose AUC
RIGHT = 3.0  # pixels within which a match is right
EPIPOLAR = (
    "5e-4",
    "1e-4",
)  # squared epipolar distances within which a match is right: the published code's, and what it recommends for MegaDepth

# Of poses: name -> start of its columns, and the function. Both work at half a pixel.
ESTIMATORS: dict[str, tuple[str, Callable[..., metrics.Pose | None]]] = {
    "opencv": ("", metrics.estimate_pose),
    "poselib": ("lo_", metrics.estimate_pose_lo),
}

# ---- one pair ------------------------------------------------------------------------------------


class Found(NamedTuple):
    """Matches in the pixels of a pair's geometry, and how they came about."""

    kpts0: np.ndarray  # [M, 2]
    kpts1: np.ndarray  # [M, 2]
    ms: float
    pixel: float  # pixels of the geometry in one pixel of the image as matched, the larger of both images
    size0: tuple[int, int]  # (height, width) of image 0 in pixels of the geometry


def find_matches(matcher: MatchFunction, pair: Pair, max_size: int, multiple: int | None = None) -> Found:
    """Resize and turn a pair's images, match them, and map the keypoints back.

    max_size: larger images are shrunk to it. multiple: as published for MegaDepth, smaller ones are enlarged to it too, and both sides are
    rounded down to a multiple of this.
    """
    image0, to_matched0, size0 = _prepare(pair, 0, max_size, multiple)
    image1, to_matched1, _ = _prepare(pair, 1, max_size, multiple)
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


def judge_pose(pair: Pair, found: Found, estimators: Sequence[str] = ("opencv",)) -> Row:
    """Angular errors of the pose that each estimator finds at 0.5 pixels, and how many matches keep to the epipolar geometry."""
    assert isinstance(pair, PosePair)
    row: Row = {}
    for name in estimators:
        prefix, estimate = ESTIMATORS[name]
        pose = estimate(found.kpts0, found.kpts1, pair.K0, pair.K1)
        error = metrics.PoseError(np.inf, np.inf)
        if pose is not None:
            error = metrics.relative_pose_error(pair.T_0to1, pose.R, pose.t)
        row[f"{prefix}rotation_error"], row[f"{prefix}translation_error"] = error
        row[f"{prefix}inliers"] = 0 if pose is None else int(pose.inliers.sum())
    E = metrics.essential_matrix(pair.T_0to1)
    distances = metrics.symmetric_epipolar_distance(found.kpts0, found.kpts1, E, pair.K0, pair.K1)
    shares = {f"right_{t}": int((distances < float(t)).sum()) for t in EPIPOLAR}
    return {**row, **shares, "matches": len(distances)}


def pose_row_names(estimators: Sequence[str]) -> tuple[str, ...]:
    """Names of the figures in a row of judge_pose."""
    each = ("rotation_error", "translation_error", "inliers")
    estimates = (f"{ESTIMATORS[estimator][0]}{name}" for estimator in estimators for name in each)
    return (*estimates, *(f"right_{t}" for t in EPIPOLAR), "matches")


def judge_stereo(pair: Pair, found: Found) -> Row:
    """Errors of the matches whose left keypoint has a known disparity; the others are not counted."""
    assert isinstance(pair, StereoPair)
    disparity = pair.read_disparity()
    if disparity.shape != found.size0:
        raise InputError(
            f"{pair.name}: disparity is {disparity.shape[1]}x{disparity.shape[0]}, expected the left image's "
            f"{found.size0[1]}x{found.size0[0]}"
        )
    errors = metrics.disparity_errors(found.kpts0, found.kpts1, disparity)
    errors = errors[~np.isnan(errors)]
    areas = metrics.error_auc(errors, PIXELS)
    return {**areas, "right": int((errors <= RIGHT).sum()), "judged": len(errors), "matches": len(found.kpts0)}


def _prepare(
    pair: Pair, side: int, max_size: int, multiple: int | None
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Image ``side`` of a pair to match, the [3, 3] map of geometry pixels to its pixels, and (height, width) of the geometry."""
    image, size, turns = (pair.image0, pair.size0, pair.turns0) if side == 0 else (pair.image1, pair.size1, pair.turns1)
    name = str(image) if isinstance(image, str | Path) else "image"
    cv2 = require("cv2", "vision")
    pixels = read_image(image, upright=pair.upright)
    if size is not None and size != pixels.shape[1::-1]:
        shrinks = pair.smooth and size[0] < pixels.shape[1]
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    height, width = pixels.shape[:2]
    A = {  # np.rot90 turns counterclockwise: the right edge comes to the top
        0: np.eye(3),
        1: np.array([[0.0, 1, 0], [-1, 0, width - 1], [0, 0, 1]]),
        2: np.array([[-1.0, 0, width - 1], [0, -1, height - 1], [0, 0, 1]]),
        3: np.array([[0.0, -1, height - 1], [1, 0, 0], [0, 0, 1]]),
    }[turns % 4]
    turned = np.ascontiguousarray(np.rot90(pixels, turns))
    if multiple is None:
        resized, _ = resize_longest(turned, max_size, name)
    else:
        resized = cv2.resize(
            turned, with_long_side(turned.shape[1::-1], max_size, multiple), interpolation=cv2.INTER_LINEAR
        )
    return resized, resize_matrix(turned.shape[1::-1], resized.shape[1::-1]) @ A, (height, width)


# ---- many pairs ----------------------------------------------------------------------------------


def summarise_homography(rows: Sequence[Row]) -> Row:
    """AUC of the corner error at 3, 5, 10 pixels, mean share of right matches, mean numbers, median ms."""
    areas = metrics.error_auc([row["corner_error"] for row in rows], PIXELS)
    return {**areas, "right@3px": _share(rows, "right", "matches"), **_counts(rows, "right", "matches")}


def summarise_pose(rows: Sequence[Row]) -> Row:
    """AUC of the larger of both angular errors at 5, 10, 20 degrees, epipolar precision, mean numbers, median ms.

    Columns of PoseLib's estimates start with lo_.
    """
    summary: Row = {}
    prefixes = [prefix for prefix, _ in ESTIMATORS.values() if f"{prefix}inliers" in rows[0]]
    for prefix in prefixes:
        areas = metrics.error_auc([pose_error(row, prefix) for row in rows], DEGREES)
        summary |= {f"{prefix}{name}": area for name, area in areas.items()}
    precision = {f"prec@{t}": _share(rows, f"right_{t}", "matches") for t in EPIPOLAR}
    return {**summary, **precision, **_counts(rows, *(f"{prefix}inliers" for prefix in prefixes), "matches")}


def pose_error(row: Row, prefix: str = "") -> float:
    """The larger of both angles of a row of judge_pose."""
    return max(row[f"{prefix}rotation_error"], row[f"{prefix}translation_error"])


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
    judge: Callable[..., Row]
    summarise: Callable[[Sequence[Row]], Row]


PROTOCOLS = {
    "homography": Protocol(judge_homography, summarise_homography),
    "pose": Protocol(judge_pose, summarise_pose),
    "stereo": Protocol(judge_stereo, summarise_stereo),
}


# ---- what is published ---------------------------------------------------------------------------

# Layout -> row beside the measured ones: what the README of the authors' code reports for its own network on all pairs, estimated by OpenCV's RANSAC.
PUBLISHED: dict[str, Row] = {
    "scannet": {"model": "paper, indoor", "auc@5": 0.249, "auc@10": 0.447, "auc@20": 0.618, "pairs": 1500},
    "megadepth": {"model": "paper, outdoor", "auc@5": 0.535, "auc@10": 0.702, "auc@20": 0.822, "pairs": 1500},
}


def with_published(rows: Sequence[Row], layout: str | None) -> list[Row]:
    """Summaries of models, and beneath them what is published for the layout, where that is known."""
    known = PUBLISHED.get(layout or "")
    return [*rows, *([] if known is None else [{name: known.get(name) for name in rows[0]}])]


def pose_estimators(names: Sequence[str] | None) -> tuple[str, ...]:
    """Names in ESTIMATORS; None stands for all whose package is there.

    Raises ValueError for an unknown one, ImportError for one whose package is missing.
    """
    if names is None:
        return tuple(name for name in ESTIMATORS if name != "poselib" or find_spec("poselib") is not None)
    if not names or len(set(names)) < len(names) or not set(names) <= set(ESTIMATORS):
        raise InputError(
            f"estimators are {', '.join(names) or 'none'}, expected one or more of {', '.join(ESTIMATORS)}, each once"
        )
    if "poselib" in names:
        require("poselib", "poses")
    return tuple(name for name in ESTIMATORS if name in names)
