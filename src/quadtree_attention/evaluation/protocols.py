"""What is measured of one pair with known geometry, and of many: homography, relative pose and stereo.

Errors are in pixels of the images as given (HPatches: of the resized images, as usual there), angles in degrees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from ..data.matching.pairs import HomographyPair, Pair, PosePair, StereoPair
from ..errors import InputError
from ..extras import require
from . import metrics
from .predictions import Prediction

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


def judge(pair: Pair, found: Prediction, estimators: Sequence[str] = ("opencv",)) -> Row:
    """What is found in a pair, by the kind of its geometry; estimators: of poses."""
    if isinstance(pair, HomographyPair):
        return judge_homography(found, pair.homography)
    if isinstance(pair, PosePair):
        return judge_pose(found, pair.K0, pair.K1, pair.T_0to1, estimators)
    assert isinstance(pair, StereoPair)
    return judge_stereo(found, pair)


def judge_homography(found: Prediction, homography: np.ndarray) -> Row:
    """Corner error of the homography found by MAGSAC, and how many matches are within 3 pixels of the true one."""
    H, _ = metrics.estimate_homography(found.keypoints0, found.keypoints1, threshold=3.0 * found.scale)
    error = metrics.homography_corner_error(H, homography, found.size0)
    distances = metrics.reprojection_errors(found.keypoints0, found.keypoints1, homography)
    return {"corner_error": error, "right": int((distances <= RIGHT).sum()), "matches": len(distances)}


def judge_pose(
    found: Prediction, K0: np.ndarray, K1: np.ndarray, T_0to1: np.ndarray, estimators: Sequence[str] = ("opencv",)
) -> Row:
    """Angular errors of the pose that each estimator finds at 0.5 pixels, and how many matches keep to the epipolar geometry."""
    row: Row = {}
    for name in estimators:
        prefix, estimate = ESTIMATORS[name]
        pose = estimate(found.keypoints0, found.keypoints1, K0, K1)
        error = metrics.PoseError(np.inf, np.inf)
        if pose is not None:
            error = metrics.relative_pose_error(T_0to1, pose.R, pose.t)
        row[f"{prefix}rotation_error"], row[f"{prefix}translation_error"] = error
        row[f"{prefix}inliers"] = 0 if pose is None else int(pose.inliers.sum())
    E = metrics.essential_matrix(T_0to1)
    distances = metrics.symmetric_epipolar_distance(found.keypoints0, found.keypoints1, E, K0, K1)
    shares = {f"right_{t}": int((distances < float(t)).sum()) for t in EPIPOLAR}
    return {**row, **shares, "matches": len(distances)}


def pose_row_names(estimators: Sequence[str]) -> tuple[str, ...]:
    """Names of the figures in a row of judge_pose."""
    each = ("rotation_error", "translation_error", "inliers")
    estimates = (f"{ESTIMATORS[estimator][0]}{name}" for estimator in estimators for name in each)
    return (*estimates, *(f"right_{t}" for t in EPIPOLAR), "matches")


def judge_stereo(found: Prediction, pair: StereoPair) -> Row:
    """Errors of the matches whose left keypoint has a known disparity; the others are not counted."""
    disparity = pair.read_disparity()
    if disparity.shape != found.size0:
        raise InputError(
            f"{pair.name}: disparity is {disparity.shape[1]}x{disparity.shape[0]}, expected the left image's "
            f"{found.size0[1]}x{found.size0[0]}"
        )
    errors = metrics.disparity_errors(found.keypoints0, found.keypoints1, disparity)
    errors = errors[~np.isnan(errors)]
    areas = metrics.error_auc(errors, PIXELS)
    return {**areas, "right": int((errors <= RIGHT).sum()), "judged": len(errors), "matches": len(found.keypoints0)}


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


PROTOCOLS: dict[str, Callable[[Sequence[Row]], Row]] = {  # name -> what many rows of `judge` come to
    "homography": summarise_homography,
    "pose": summarise_pose,
    "stereo": summarise_stereo,
}


def protocol_of(pair: Pair) -> str:
    """The name in PROTOCOLS by which a pair is measured."""
    kinds = {HomographyPair: "homography", PosePair: "pose", StereoPair: "stereo"}
    return next(name for kind, name in kinds.items() if isinstance(pair, kind))


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
