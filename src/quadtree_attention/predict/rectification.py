"""Rectify two photographs: turn both so that a point lies in the same row of each, as `StereoMatcher` expects.

The motion of the camera comes from matches. Where the focal length is not known, it is the one that lets matched rows agree best. Both images
are then turned about their camera centres, so that the line between the cameras becomes their x-axis (Fusiello et al., "A compact algorithm for
rectification of stereo pairs", 2000). Shapes stay as natural as from real cameras, and it is known which view is the left one and which disparity
is at infinity; OpenCV's stereoRectifyUncalibrated promises neither.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..data.stereo.calibration import StereoCamera
from ..errors import InputError
from ..files import atomic_write

_FEWEST = 20  # matches that agree with one motion
_USUAL_FOCAL = 1.2  # focal length as a share of the longer side where nothing is known, as COLMAP has it
_FOCALS = np.geomspace(0.6, 2.5, 19)  # such shares to try
_LARGEST = 2.0  # a rectified image has at most so many times the sides of the originals
_FLAT = 0.95  # share of the matches that one homography may explain
_WRONG = {
    "above": "one camera is above the other, expected them side by side; rotate both photographs by 90 degrees, and try again",
    "ahead": "the camera moved forwards or backwards, expected a step to the side",
}
_ROOM = 0.5  # behind the farthest match, as a share of the range of disparities


@dataclass(frozen=True, eq=False)
class Rectification:
    """How to rectify a pair.

    homography0, homography1: float64 ``[3, 3]``, pixels of image 0 and image 1 as given to pixels of the rectified images. size: (width, height)
    of both rectified images. swapped: whether image 1 is the left one. camera: the rectified cameras, at a distance of 1. rows: median distance in
    pixels of the rows of matched points. disparity: the least and the greatest of the matches, in pixels. matches: how many it rests on.
    """

    homography0: np.ndarray
    homography1: np.ndarray
    size: tuple[int, int]
    swapped: bool
    camera: StereoCamera
    rows: float
    disparity: tuple[float, float]
    matches: int

    def warp(self, image0: np.ndarray, image1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The left and the right rectified image of ``image0`` and ``image1``, each ``[H, W]`` or ``[H, W, C]``; black where nothing was seen."""
        both = [
            cv2.warpPerspective(image, homography, self.size, flags=cv2.INTER_AREA)
            for image, homography in ((image0, self.homography0), (image1, self.homography1))
        ]
        return (both[1], both[0]) if self.swapped else (both[0], both[1])

    def save_calibration(self, path: str | Path) -> None:
        """Write the cameras as OpenCV's YAML with P1 and P2, which `quadtree stereo --calib` reads. The unit is the distance of the cameras."""
        (x, y), f = self.camera.center or (0.0, 0.0), self.camera.focal
        with atomic_write(path) as temporary:
            lines = ["%YAML:1.0", "---", f"image_width: {self.size[0]}", f"image_height: {self.size[1]}"]
            for name, column, shift in (("P1", x, 0.0), ("P2", x + self.camera.offset, -f)):
                data = ", ".join(f"{value:.9g}" for value in (f, 0, column, shift, 0, f, y, 0, 0, 0, 1, 0))
                lines += [f"{name}: !!opencv-matrix", "   rows: 3", "   cols: 4", "   dt: d", f"   data: [ {data} ]"]
            temporary.write_text("\n".join(lines) + "\n", encoding="ascii")


def rectify(
    points0: np.ndarray,
    points1: np.ndarray,
    size0: tuple[int, int],
    size1: tuple[int, int],
    focal: float | None = None,
    threshold: float = 1.0,
) -> Rectification:
    """Find out how to rectify two images of a static scene.

    Args:
        points0, points1: matched points ``[M, 2]``, (x, y) in pixels, as `Matches` has them.
        size0, size1: (width, height) of the images.
        focal: focal length in pixels of both; None: found from the matches.
        threshold: how far matches may be from their epipolar lines, in pixels.

    Raises:
        InputError: too few matches agree; the scene is flat or the camera did not move; or it moved forwards or upwards.
    """
    points0, points1 = (np.asarray(points, np.float64) for points in (points0, points1))
    fundamental, inside = _agreeing(points0, points1, threshold)
    points0, points1 = points0[inside], points1[inside]

    def from_usual(one: _Turned) -> float:
        return abs(math.log(one.focal / (_USUAL_FOCAL * max(size0))))

    shares = _FOCALS if focal is None else [focal / max(size0)]
    tries = [_turned(fundamental, points0, points1, size0, size1, share) for share in shares]
    across = [one for one in tries if one.direction == "across"]
    if not across:
        raise InputError(_WRONG[min(tries, key=from_usual).direction])
    best = min(one.rows for one in across)
    return _framed(min((one for one in across if one.rows <= 1.1 * best + 0.05), key=from_usual), size0, size1)


@dataclass(frozen=True, eq=False)
class _Turned:
    """Rotations of both cameras, as homographies to rectified pixels around (0, 0), the matched points there, and where camera 1 stands."""

    focal: float
    homography0: np.ndarray
    homography1: np.ndarray
    points0: np.ndarray
    points1: np.ndarray
    direction: str
    swapped: bool

    @property
    def rows(self) -> float:
        return float(np.median(abs(self.points0[:, 1] - self.points1[:, 1])))


def _agreeing(points0: np.ndarray, points1: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """The fundamental matrix ``[3, 3]``, and which matches agree with it, bool ``[M]``; an error where that says nothing about the motion."""
    fundamental, inside = None, np.zeros(len(points0), bool)
    if len(points0) >= 8:
        fundamental, mask = cv2.findFundamentalMat(points0, points1, cv2.USAC_MAGSAC, threshold, 0.9999, 10_000)
        if mask is not None:
            inside = mask.ravel() > 0
    if fundamental is None or inside.sum() < _FEWEST:
        raise InputError(
            f"{inside.sum()} of {len(points0)} matches agree with one motion of the camera, expected at least {_FEWEST}; "
            "take two photographs of one static scene, side by side"
        )
    _, flat = cv2.findHomography(points0[inside], points1[inside], cv2.USAC_MAGSAC, threshold, maxIters=10_000)
    if flat is not None and flat.mean() >= _FLAT:
        raise InputError(
            "one homography explains the matches: the scene is flat, or the camera only rotated; "
            "expected a scene with depth, and a step to the side between the photographs"
        )
    return fundamental, inside


def _turned(
    fundamental: np.ndarray,
    points0: np.ndarray,
    points1: np.ndarray,
    size0: tuple[int, int],
    size1: tuple[int, int],
    share: float,
) -> _Turned:
    """Both cameras turned to look at right angles to the line between them."""
    cameras = [_intrinsics(size, share) for size in (size0, size1)]
    rays0, rays1 = (
        cv2.undistortPoints(points[:, None], K, None)[:, 0]
        for points, K in zip((points0, points1), cameras, strict=True)
    )
    _, R, t, _ = cv2.recoverPose(cameras[1].T @ fundamental @ cameras[0], rays0, rays1, np.eye(3))
    centre = (-R.T @ t).ravel()  # of camera 1, seen from camera 0
    forward = np.array([0.0, 0.0, 1.0]) + R[2]  # between the directions that both look in
    upward = np.array([0.0, 1.0, 0.0]) + R[1]
    sideways = np.cross(upward, forward)
    parts = {"across": sideways, "ahead": forward, "above": upward}
    shares = {name: abs(centre @ axis) / np.linalg.norm(axis) for name, axis in parts.items()}
    swapped = bool(centre @ sideways < 0)
    x = -centre if swapped else centre
    y = np.cross(forward, x)
    y /= np.linalg.norm(y)
    turn0 = np.stack([x, y, np.cross(x, y)])
    focal = share * max(size0)
    K = np.diag([focal, focal, 1.0])
    homographies = [K @ turn0 @ np.linalg.inv(cameras[0]), K @ turn0 @ R.T @ np.linalg.inv(cameras[1])]
    moved0, moved1 = (
        cv2.perspectiveTransform(points[:, None], homography)[:, 0]
        for points, homography in zip((points0, points1), homographies, strict=True)
    )
    # What is left of the difference of rows: an affine function of the place, fitted to all but outliers.
    correction = np.eye(3)
    design = np.column_stack([moved1, np.ones(len(moved1))])
    weights = np.ones(len(moved1))
    for _ in range(10):
        correction[1] = np.linalg.lstsq(design * weights[:, None], moved0[:, 1] * weights, rcond=None)[0]
        weights = 1 / np.sqrt(1 + (design @ correction[1] - moved0[:, 1]) ** 2)
    moved1 = cv2.perspectiveTransform(moved1[:, None], correction)[:, 0]
    direction = max(shares, key=lambda name: shares[name])
    return _Turned(focal, homographies[0], correction @ homographies[1], moved0, moved1, direction, swapped)


def _intrinsics(size: tuple[int, int], share: float) -> np.ndarray:
    """A camera whose focal length is ``share`` of the longer side, looking through the middle."""
    focal = share * max(size)
    return np.array([[focal, 0, (size[0] - 1) / 2], [0, focal, (size[1] - 1) / 2], [0, 0, 1]])


def _framed(turned: _Turned, size0: tuple[int, int], size1: tuple[int, int]) -> Rectification:
    """Cut out what the left image shows, and the rows that both show; the right one is shifted until little of its width is lost."""
    boxes = [_box(turned.homography0, size0), _box(turned.homography1, size1)]
    points = [turned.points0, turned.points1]
    if turned.swapped:
        boxes, points = boxes[::-1], points[::-1]
    low, high = np.percentile((points[0] - points[1])[:, 0], (1, 99))
    offset = max(0.0, math.floor(low - _ROOM * (high - low)))
    left, _, right, _ = boxes[0]
    top, bottom = max(box[1] for box in boxes), min(box[3] for box in boxes)
    # Where views meet at a steep angle, corners move towards infinity.
    reach = _LARGEST * max(*size0, *size1) / 2
    middle = np.median(points[0], axis=0)
    left, right = max(left, middle[0] - reach), min(right, middle[0] + reach)
    top, bottom = max(top, middle[1] - reach), min(bottom, middle[1] + reach)
    size = (math.ceil(right - left), math.ceil(bottom - top))
    if min(size) < 32:
        raise InputError("the images show hardly anything in common after rectification, expected views that overlap")
    shifts = [np.array([[1, 0, more - left], [0, 1, -top], [0, 0, 1.0]]) for more in (0.0, offset)]
    if turned.swapped:
        shifts = shifts[::-1]
    return Rectification(
        shifts[0] @ turned.homography0,
        shifts[1] @ turned.homography1,
        size,
        turned.swapped,
        StereoCamera(turned.focal, 1.0, (-left, -top), offset, size),
        turned.rows,
        (float(low - offset), float(high - offset)),
        len(points[0]),
    )


def _box(homography: np.ndarray, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The least and greatest x and y of an image's corners: left, top, right, bottom; without bound where a corner is behind the camera."""
    corners = np.array([[0, 0, 1], [size[0] - 1, 0, 1], [size[0] - 1, size[1] - 1, 1], [0, size[1] - 1, 1.0]])
    x, y, w = homography @ corners.T
    if not (w > 1e-6).all():
        return -math.inf, -math.inf, math.inf, math.inf
    return float((x / w).min()), float((y / w).min()), float((x / w).max()), float((y / w).max())
