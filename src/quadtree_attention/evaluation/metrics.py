"""How good a set of matches is: pure functions on numpy arrays (CPU tensors are taken too).

Pixels are (x, y) with centres at integers. Keypoints are [M, 2]. Homographies [3, 3] map pixels of image 0 to pixels of
image 1, poses T_0to1 [3 or 4, 4] map points of camera 0 to camera 1. A pair on which a method fails has the error
infinity. The pose protocol follows the evaluation published with LoFTR (arXiv 2104.00680), which repeats SuperGlue's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ..errors import InputError
from ..extras import require


class PoseError(NamedTuple):
    """Angles in degrees between an estimated and a true relative pose."""

    rotation: float
    translation: float

    @property
    def worst(self) -> float:
        """The larger of both: the number whose AUC is reported."""
        return max(self)


class Pose(NamedTuple):
    """An estimated relative pose: R [3, 3], t [3] of unit length, inliers bool [M]."""

    R: np.ndarray
    t: np.ndarray
    inliers: np.ndarray


def error_auc(errors: ArrayLike, thresholds: Sequence[float]) -> dict[str, float]:
    """Area under the recall curve up to each threshold, divided by it: {"auc@5": ...}, in 0..1.

    errors [N], one a pair; failures are inf (NaN counts as inf). The curve joins the points (error of rank k, k / N) by
    straight lines, starts at (0, 0) and runs level from the last error below the threshold to the threshold. No errors
    at all give 0.
    """
    known = np.asarray(errors, dtype=np.float64).reshape(-1)
    known = np.concatenate([[0.0], np.sort(np.where(np.isnan(known), np.inf, known))])
    recall = np.linspace(0.0, 1.0, len(known))
    areas = {}
    for threshold in thresholds:
        if not threshold > 0:
            raise InputError(
                f"threshold of an AUC is {threshold!r}: expected a positive number of the errors' unit, such as 5"
            )
        last = int(np.searchsorted(known, threshold))  # errors equal to the threshold are not below it
        x = np.append(known[:last], threshold)
        y = np.append(recall[:last], recall[last - 1])
        areas[f"auc@{threshold:g}"] = float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / threshold)
    return areas


# ---- homographies --------------------------------------------------------------------------------


def warp_points(H: ArrayLike, points: ArrayLike) -> np.ndarray:
    """Points [M, 2] through the homography H [3, 3]; inf for points on its horizon."""
    H = np.asarray(H, dtype=np.float64)
    x, y, w = H @ np.c_[_points(points), np.ones(len(_points(points)))].T
    with np.errstate(divide="ignore", invalid="ignore"):
        warped = np.stack([x, y], axis=1) / w[:, None]
    warped[w == 0] = np.inf
    return warped


def reprojection_errors(kpts0: ArrayLike, kpts1: ArrayLike, H: ArrayLike) -> np.ndarray:
    """Distance [M] in pixels of image 1 between kpts0 warped by H and kpts1."""
    return np.linalg.norm(warp_points(H, kpts0) - _points(kpts1), axis=1)


def homography_corner_error(H_est: ArrayLike | None, H_true: ArrayLike, size: tuple[int, int]) -> float:
    """Mean distance in pixels between the corners of image 0 warped by both homographies.

    size: (height, width) of image 0; the distance is in pixels of image 1. inf where there is no estimate, or where it
    sends some corners through infinity.
    """
    if H_est is None:
        return float("inf")
    H_est = np.asarray(H_est, dtype=np.float64)
    height, width = size
    corners = np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]], dtype=np.float64)
    w = np.c_[corners, np.ones(4)] @ H_est[2]
    if not np.isfinite(H_est).all() or w.min() * w.max() <= 0:
        return float("inf")
    return float(np.linalg.norm(warp_points(H_est, corners) - warp_points(H_true, corners), axis=1).mean())


def estimate_homography(
    kpts0: ArrayLike, kpts1: ArrayLike, threshold: float = 3.0
) -> tuple[np.ndarray | None, np.ndarray]:
    """Homography by OpenCV's USAC_MAGSAC at a threshold in pixels -> H [3, 3] or None, inliers bool [M]."""
    import cv2

    kpts0, kpts1 = _points(kpts0), _points(kpts1)
    if len(kpts0) < 4:
        return None, np.zeros(len(kpts0), dtype=bool)
    try:
        H, mask = cv2.findHomography(kpts0, kpts1, cv2.USAC_MAGSAC, threshold, maxIters=10_000, confidence=0.9999)
    except cv2.error:  # degenerate input, such as all points on one line
        H, mask = None, None
    inliers = np.zeros(len(kpts0), dtype=bool) if H is None or mask is None else mask.ravel() > 0
    return H, inliers


# ---- disparities ---------------------------------------------------------------------------------


def disparity_errors(kpts0: ArrayLike, kpts1: ArrayLike, disparity: ArrayLike) -> np.ndarray:
    """Errors [M] in pixels of matches in a rectified pair: the larger of |x0 - d - x1| and |y0 - y1|.

    NaN where d is not known. disparity [H, W] belongs to the left image (left x - d = right x) and is read at the
    pixel nearest to the left keypoint, never interpolated across an edge; values that are not finite or not positive
    are unknown.
    """
    disparity = np.asarray(disparity, dtype=np.float64)
    kpts0, kpts1 = _points(kpts0), _points(kpts1)
    height, width = disparity.shape
    column, row = np.rint(kpts0).astype(np.int64).T
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    d = np.full(len(kpts0), np.nan)
    d[inside] = disparity[row[inside], column[inside]]
    d[~(np.isfinite(d) & (d > 0))] = np.nan
    return np.maximum(np.abs(kpts0[:, 0] - d - kpts1[:, 0]), np.abs(kpts0[:, 1] - kpts1[:, 1]))


# ---- poses ---------------------------------------------------------------------------------------


def relative_pose_error(T_0to1: ArrayLike, R: ArrayLike, t: ArrayLike) -> PoseError:
    """Angles in degrees between the true relative pose T_0to1 [3 or 4, 4] and an estimate R [3, 3], t [3].

    The sign of a translation found from an essential matrix is arbitrary, so e and 180 - e count the same. Where the
    true translation is zero, its error is 0. An estimate without direction has the error inf.
    """
    T_0to1, R, t = (np.asarray(a, dtype=np.float64) for a in (T_0to1, R, t))
    t, t_true = t.reshape(3), T_0to1[:3, 3]
    length = float(np.linalg.norm(t_true))
    if length == 0:
        translation = 0.0
    elif not np.linalg.norm(t) > 0:
        translation = float("inf")
    else:
        angle = _degrees(float(t @ t_true) / (float(np.linalg.norm(t)) * length))
        translation = min(angle, 180.0 - angle)
    return PoseError(_degrees((np.trace(R.T @ T_0to1[:3, :3]) - 1) / 2), translation)


def estimate_pose(
    kpts0: ArrayLike,
    kpts1: ArrayLike,
    K0: ArrayLike,
    K1: ArrayLike,
    threshold: float = 0.5,
    confidence: float = 0.99999,
) -> Pose | None:
    """Relative pose by RANSAC over essential matrices; None with fewer than 5 matches or without a solution.

    threshold: in pixels. Keypoints are made calibrated rays by the intrinsics [3, 3] (focal lengths and centre; no
    skew). Of several essential matrices the one with the most points in front of both cameras is taken. Step by step as
    published with LoFTR, so that numbers compare.
    """
    import cv2

    K0, K1 = np.asarray(K0, dtype=np.float64), np.asarray(K1, dtype=np.float64)
    rays0, rays1 = _calibrated(kpts0, K0), _calibrated(kpts1, K1)
    if len(rays0) < 5:
        return None
    focal = (K0[0, 0] + K1[1, 1]) / 2  # fx of one camera and fy of the other, as published
    try:
        stacked, mask = cv2.findEssentialMat(
            rays0, rays1, np.eye(3), threshold=threshold / focal, prob=confidence, method=cv2.RANSAC
        )
    except cv2.error:
        return None
    if stacked is None or mask is None or len(stacked) < 3:
        return None
    best, best_count = None, 0
    for E in np.split(stacked, len(stacked) // 3):
        # recoverPose clears points behind a camera in this very mask; the next one sees what is left, as published
        count, R, t = cv2.recoverPose(E, rays0, rays1, np.eye(3), 1e9, mask=mask)[:3]
        if count > best_count:
            best, best_count = Pose(R, t[:, 0], mask.ravel() > 0), count
    return best


def estimate_pose_lo(
    kpts0: ArrayLike,
    kpts1: ArrayLike,
    K0: ArrayLike,
    K1: ArrayLike,
    threshold: float = 0.5,
    confidence: float = 0.99999,
) -> Pose | None:
    """As estimate_pose, by PoseLib's LO-RANSAC, which refines its hypotheses and the result; the same matches give the same pose."""
    poselib = require("poselib", "poses")
    kpts0, kpts1 = _points(kpts0), _points(kpts1)
    if len(kpts0) < 5:
        return None
    cameras = [
        {"model": "PINHOLE", "width": 0, "height": 0, "params": [K[0, 0], K[1, 1], K[0, 2], K[1, 2]]}
        for K in (np.asarray(K, dtype=np.float64) for K in (K0, K1))
    ]
    robust = {"max_epipolar_error": threshold, "success_prob": confidence}
    pose, found = poselib.estimate_relative_pose(kpts0, kpts1, *cameras, robust, {})
    t = np.asarray(pose.t)
    if found["num_inliers"] < 5 or not (np.isfinite(pose.R).all() and np.linalg.norm(t) > 0):
        return None
    return Pose(pose.R, t / np.linalg.norm(t), np.array(found["inliers"], dtype=bool))


def essential_matrix(T_0to1: ArrayLike) -> np.ndarray:
    """The essential matrix [t]x R [3, 3] of a relative pose [3 or 4, 4]."""
    T_0to1 = np.asarray(T_0to1, dtype=np.float64)
    x, y, z = T_0to1[:3, 3]
    return np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ T_0to1[:3, :3]


def symmetric_epipolar_distance(
    kpts0: ArrayLike, kpts1: ArrayLike, E: ArrayLike, K0: ArrayLike, K1: ArrayLike
) -> np.ndarray:
    """Squared symmetric epipolar distances [M] in calibrated coordinates; NaN for a match of two epipoles."""
    points0, points1 = _calibrated(kpts0, np.asarray(K0)), _calibrated(kpts1, np.asarray(K1))
    E = np.asarray(E, dtype=np.float64)
    homogeneous0, homogeneous1 = np.c_[points0, np.ones(len(points0))], np.c_[points1, np.ones(len(points1))]
    lines1, lines0 = homogeneous0 @ E.T, homogeneous1 @ E
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 1 / (lines1[:, :2] ** 2).sum(1) + 1 / (lines0[:, :2] ** 2).sum(1)
        return (homogeneous1 * lines1).sum(1) ** 2 * scale


def _points(points: ArrayLike) -> np.ndarray:
    return np.asarray(points, dtype=np.float64).reshape(-1, 2)


def _calibrated(kpts: ArrayLike, K: np.ndarray) -> np.ndarray:
    return (_points(kpts) - K[[0, 1], [2, 2]]) / K[[0, 1], [0, 1]]


def _degrees(cosine: float) -> float:
    return float(np.rad2deg(np.arccos(np.clip(cosine, -1.0, 1.0))))
