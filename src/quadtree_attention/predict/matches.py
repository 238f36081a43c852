"""Matches of two images: the geometry they agree on, and files of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.images import read_image
from ..errors import InputError
from ..extras import require
from ..files import atomic_write, checked_suffix
from ..formats import MATCH_SUFFIXES
from .results import Result

# kind -> (fewest matches, default threshold in matched pixels)
GEOMETRIES = {"homography": (4, 3.0), "fundamental": (8, 1.0), "essential": (6, 1.0)}


@dataclass(frozen=True, eq=False)
class Geometry(Result):
    """What `Matches.geometry` found.

    kind: "homography", "fundamental" or "essential".
    model: ``[3, 3]`` float64, None if nothing fits.
    inliers: bool ``[M]``.
    R, t: of an essential matrix, the rotation ``[3, 3]`` and the direction of the translation ``[3]``, of length 1: a point ``x0`` in the frame of
        camera 0 is ``R @ x0 + s * t`` in that of camera 1, with a scale ``s > 0`` that two images do not determine. None for other kinds.
    """

    kind: str
    model: np.ndarray | None
    inliers: np.ndarray
    R: np.ndarray | None = None
    t: np.ndarray | None = None

    def warp(self, image0: Any, size: tuple[int, int] | None = None) -> np.ndarray:
        """Warp image 0 to the view of image 1, by the homography.

        Args:
            image0: the first of the matched images; a path, PIL image, numpy array or torch tensor, see `data.images.read_image`.
            size: (height, width) of the result, such as that of image 1; by default that of image 0.

        Returns:
            ``[H, W, 3]`` uint8 RGB; black where image 0 shows nothing.

        Raises:
            ValueError: there is no homography, or a bad image or size.
        """
        if self.kind != "homography" or self.model is None:
            found = "no homography fits the matches" if self.kind == "homography" else f"geometry is {self.kind!r}"
            raise InputError(f"{found}, expected a homography to warp an image by")
        pixels = read_image(image0)
        height, width = pixels.shape[:2] if size is None else size
        if min(height, width) < 1:
            raise InputError(f"size is {size}, expected (height, width) of at least 1 pixel")
        cv2 = require("cv2", "vision")
        from ..data.warp import warped_view

        return warped_view(pixels, np.linalg.inv(self.model), (height, width), cv2.BORDER_CONSTANT)


@dataclass(frozen=True, eq=False)
class Matches(Result):
    """Points of image 0 and where they are in image 1.

    keypoints0, keypoints1: float32 ``[M, 2]``, (x, y) in pixels of the images as given, pixel centres at integers.
    confidence: float32 ``[M]``.
    scale: size of the images as given over their size as matched, the larger of the two.
    """

    keypoints0: np.ndarray
    keypoints1: np.ndarray
    confidence: np.ndarray
    scale: float = 1.0

    def __len__(self) -> int:
        return len(self.confidence)

    def geometry(self, kind: str, *, threshold: float | None = None, intrinsics: Any = None) -> Geometry:
        """Fit one model to all matches by MAGSAC++ (OpenCV's USAC_MAGSAC); the same matches give the same result.

        Args:
            kind: "homography" (a plane, or a camera that only rotated: ``x1 ~ H x0``), "fundamental" (any rigid scene: ``x1' F x0 = 0``) or
                "essential" (the same, for calibrated cameras).
            threshold: largest error of an inlier in pixels of the images as given; by default 3 for "homography" and 1 for the others,
                times ``scale``.
            intrinsics: for "essential": a matrix ``[3, 3]`` or (fx, fy, cx, cy) for both images, or a pair of those.

        Returns:
            `Geometry`; with too few matches, or when nothing fits, its model is None and there are no inliers.

        Raises:
            ValueError: an unknown kind, or options that do not fit it.
        """
        if kind not in GEOMETRIES:
            raise InputError(f"geometry is {kind!r}, expected one of {', '.join(GEOMETRIES)}")
        if (intrinsics is not None) != (kind == "essential"):
            raise InputError(
                f"intrinsics {'are missing' if intrinsics is None else 'were given'} with geometry {kind!r}; 'essential' alone takes them"
            )
        if threshold is not None and not 0 < threshold < float("inf"):
            raise InputError(f"geometry threshold is {threshold}, expected pixels above 0")
        fewest, default = GEOMETRIES[kind]
        threshold = default * self.scale if threshold is None else threshold
        cameras = _cameras(intrinsics) if kind == "essential" else None
        nothing = Geometry(kind, None, np.zeros(len(self), bool))
        if len(self) < fewest:
            return nothing
        cv2 = require("cv2", "vision")
        points0, points1 = self.keypoints0.astype(np.float64), self.keypoints1.astype(np.float64)
        robust = {"confidence": 0.9999, "maxIters": 10_000}
        try:
            if kind == "homography":
                model, mask = cv2.findHomography(points0, points1, cv2.USAC_MAGSAC, threshold, **robust)
            elif kind == "fundamental":
                model, mask = cv2.findFundamentalMat(points0, points1, cv2.USAC_MAGSAC, threshold, *robust.values())
            else:
                (f0, c0), (f1, c1) = cameras  # type: ignore[misc]
                rays0, rays1 = (points0 - c0) / f0, (points1 - c1) / f1
                model, mask = cv2.findEssentialMat(
                    rays0,
                    rays1,
                    np.eye(3),
                    method=cv2.USAC_MAGSAC,
                    prob=robust["confidence"],
                    threshold=threshold / np.mean([f0, f1]),
                )
        except cv2.error:  # degenerate points, such as all in one place
            return nothing
        if model is None or model.shape[0] < 3 or not np.isfinite(model[:3]).all():
            return nothing
        pose: tuple[np.ndarray, ...] = ()
        if kind == "essential":
            # All points vote, however far away: a scene may be thousands of baselines deep.
            _, R, t = cv2.recoverPose(model[:3], rays0, rays1, np.eye(3), 1e9, mask=mask.copy())[:3]
            pose = R, t.ravel()
        return Geometry(kind, model[:3], mask.ravel().astype(bool), *pose)

    def save(self, path: str | Path, geometry: Geometry | None = None) -> None:
        """Write the matches to .npz, .json or .csv, whole or not at all.

        Args:
            path: the file.
            geometry: adds its inliers, and in .npz and .json its model and pose.
        """
        suffix = checked_suffix(path, MATCH_SUFFIXES)
        with atomic_write(path) as temporary:
            _WRITERS[suffix](temporary, self, geometry)


def _cameras(intrinsics: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Focal lengths ``[2]`` and principal point ``[2]`` of both cameras."""
    wanted = "expected a [3, 3] matrix or (fx, fy, cx, cy), or a pair of those"
    try:
        array = np.asarray(intrinsics, np.float64)
    except (ValueError, TypeError):
        pair: Sequence[Any] = intrinsics
        if not isinstance(intrinsics, list | tuple) or len(intrinsics) != 2:
            raise InputError(f"intrinsics are {intrinsics!r}, {wanted}") from None
    else:
        pair = (
            [array, array]
            if array.shape in ((3, 3), (4,))
            else list(array)
            if array.ndim > 1 and len(array) == 2
            else []
        )
    cameras = []
    for one in pair:
        one = np.asarray(one, np.float64)
        if one.shape == (3, 3):
            one = one[[0, 1, 0, 1], [0, 1, 2, 2]]
        if one.shape == (4,) and np.isfinite(one).all() and (one[:2] > 0).all():
            cameras.append((one[:2], one[2:]))
    if len(cameras) != 2:
        raise InputError(f"intrinsics are {np.asarray(intrinsics, object).tolist()}, {wanted}; focal lengths above 0")
    return cameras


def _write_npz(path: Path, matches: Matches, geometry: Geometry | None) -> None:
    arrays = {"keypoints0": matches.keypoints0, "keypoints1": matches.keypoints1, "confidence": matches.confidence}
    if geometry is not None:
        arrays["inliers"] = geometry.inliers
        arrays |= {name: value for name, value in _models(geometry).items() if value is not None}
    with path.open("wb") as file:  # savez would add a suffix to names such as x.NPZ
        np.savez(file, **arrays)  # type: ignore[arg-type]  # no name of an array is allow_pickle, the one option


def _write_json(path: Path, matches: Matches, geometry: Geometry | None) -> None:
    data: dict[str, Any] = {
        "keypoints0": _rounded(matches.keypoints0, 3),
        "keypoints1": _rounded(matches.keypoints1, 3),
        "confidence": _rounded(matches.confidence, 4),
    }
    if geometry is not None:
        data["inliers"] = geometry.inliers.tolist()
        data |= {name: None if value is None else value.tolist() for name, value in _models(geometry).items()}
    path.write_text(json.dumps(data) + "\n", encoding="utf-8")


def _models(geometry: Geometry) -> dict[str, np.ndarray | None]:
    """The model by its kind, and the pose of an essential matrix."""
    pose = {"R": geometry.R, "t": geometry.t} if geometry.kind == "essential" else {}
    return {geometry.kind: geometry.model, **pose}


def _write_csv(path: Path, matches: Matches, geometry: Geometry | None) -> None:
    columns = ["x0", "y0", "x1", "y1", "confidence"]
    points = np.concatenate([matches.keypoints0, matches.keypoints1], 1)
    rows = [[*xy, c] for xy, c in zip(_rounded(points, 3), _rounded(matches.confidence, 4), strict=True)]
    if geometry is not None:
        columns.append("inlier")
        rows = [[*row, int(inlier)] for row, inlier in zip(rows, geometry.inliers, strict=True)]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])


def _rounded(array: np.ndarray, decimals: int) -> list:
    return array.astype(np.float64).round(decimals).tolist()


_WRITERS = {".npz": _write_npz, ".json": _write_json, ".csv": _write_csv}
