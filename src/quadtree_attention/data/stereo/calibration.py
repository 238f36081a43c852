"""Calibration of rectified stereo cameras, as Middlebury, KITTI and OpenCV write it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...errors import InputError
from ..lists import lines_in

_MIDDLEBURY = re.compile(r"(\w+)\s*=\s*(.*)")
_KITTI = re.compile(r"(P\d|P_rect_0\d|S_rect_0\d):\s*(.*)")
_OPENCV = re.compile(
    r"^\s*(P1|P2):\s*!!opencv-matrix\s+rows:\s*3\s+cols:\s*4\s+dt:\s*\"?[fd]\"?\s+data:\s*\[([^\]]*)\]", re.MULTILINE
)
_OPENCV_SIZE = re.compile(r"^\s*(image_width|image_height):\s*(\d+)", re.MULTILINE)
_KITTI_PAIRS = (("P_rect_02", "P_rect_03"), ("P_rect_00", "P_rect_01"), ("P2", "P3"), ("P0", "P1"))


@dataclass(frozen=True)
class StereoCamera:
    """A rectified pair of cameras: z = focal * baseline / (disparity + offset).

    focal: in pixels. baseline: distance of the cameras; depths have its unit. center: principal point (x, y) of the left camera in pixels, centres
    of pixels at integers; None: the middle of the image. offset: x of the right principal point less that of the left one, in pixels. size: (width,
    height) of the images that all this is for; None if it is for those at hand.
    """

    focal: float
    baseline: float
    center: tuple[float, float] | None = None
    offset: float = 0.0
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name in ("focal", "baseline"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}, expected a number above 0")
        for value in (self.offset, *(self.center or ())):
            if not math.isfinite(value):
                raise InputError(f"a principal point is {value}, expected numbers that are finite")

    def of_images(self, size: tuple[int, int]) -> StereoCamera:
        """Convert to pixels of images of (width, height), if these are the calibrated images enlarged or shrunk.

        Raises:
            ValueError: the images have another aspect ratio.
        """
        if self.size is None or self.size == size:
            return replace(self, size=size)
        across, down = size[0] / self.size[0], size[1] / self.size[1]
        if abs(across - down) * max(self.size) > 2:
            raise InputError(
                f"the calibration is for {self.size[0]}x{self.size[1]} pixels, and the images have {size[0]}x{size[1]}: expected the same form"
            )
        center = self.center and ((self.center[0] + 0.5) * across - 0.5, (self.center[1] + 0.5) * down - 0.5)
        return StereoCamera(self.focal * across, self.baseline, center, self.offset * across, size)

    def of_right(self) -> StereoCamera:
        """The camera for the disparity of the right view, with its own principal point."""
        return replace(self, center=self.center and (self.center[0] + self.offset, self.center[1]))

    def depth(self, disparity: np.ndarray) -> np.ndarray:
        """Depth of each pixel, float32, of the shape of ``disparity``; infinity where nothing is that far away."""
        apart = disparity.astype(np.float64) + self.offset
        with np.errstate(divide="ignore", over="ignore"):
            return np.where(apart > 0, self.focal * self.baseline / apart, np.inf).astype(np.float32)


def read_calibration(path: str | Path) -> StereoCamera:
    """Read a calibration file in any of three formats.

    - Middlebury's calib.txt, of 2014 and later: ``cam0``, ``cam1``, ``doffs``, ``baseline`` in millimetres, which become metres.
    - KITTI's calib_cam_to_cam.txt, or its files with ``P0`` to ``P3``: of the colour cameras 2 and 3 if they are there, or else of 0 and 1; metres.
    - OpenCV's YAML of stereoRectify with the matrices ``P1`` and ``P2``; the unit is that of the calibration board.

    Raises:
        ValueError: another format, or impossible numbers.
        OSError: it cannot be read.
    """
    path = Path(path)
    lines = lines_in(path)
    try:
        if matrices := dict(_OPENCV.findall("\n".join(lines))):
            size = {name: int(value) for name, value in _OPENCV_SIZE.findall("\n".join(lines))}
            found = _of_projections(*(_numbers(matrices.get(name), 12, name) for name in ("P1", "P2")))
            return replace(found, size=(size["image_width"], size["image_height"])) if len(size) == 2 else found
        values = {match[1]: match[2] for line in lines if (match := _KITTI.fullmatch(line))}
        for first, second in _KITTI_PAIRS:
            if first in values and second in values:
                camera = _of_projections(_numbers(values[first], 12, first), _numbers(values[second], 12, second))
                shape = values.get(first.replace("P_", "S_"))
                if first.startswith("P_") and shape is not None:
                    width, height = _numbers(shape, 2, "S_rect")
                    camera = replace(camera, size=(round(width), round(height)))
                return camera
        values = {match[1]: match[2] for line in lines if (match := _MIDDLEBURY.fullmatch(line))}
        if "cam0" in values:
            return _middlebury(values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    raise InputError(
        f"{path} is no calibration of a stereo pair that is known here, expected Middlebury's calib.txt (cam0=, cam1=, baseline=), "
        "KITTI's (P_rect_02:, P_rect_03:, or P2:, P3:), or OpenCV's YAML with P1 and P2"
    )


def _middlebury(values: dict[str, str]) -> StereoCamera:
    first, second = (_numbers(values.get(name), 9, name) for name in ("cam0", "cam1"))
    (baseline,) = _numbers(values.get("baseline"), 1, "baseline")
    offset = _numbers(values["doffs"], 1, "doffs")[0] if "doffs" in values else second[2] - first[2]
    size = None
    if "width" in values and "height" in values:
        size = (round(_numbers(values["width"], 1, "width")[0]), round(_numbers(values["height"], 1, "height")[0]))
    return StereoCamera(first[0], baseline / 1000, (first[2], first[5]), offset, size)


def _of_projections(left: list[float], right: list[float]) -> StereoCamera:
    """From two projection matrices, row by row, of cameras that look the same way; ``P[0, 3]`` is focal length times place, with a minus."""
    focal = left[0]
    if not focal > 0:
        raise InputError(f"focal is {focal}, expected a number above 0")
    baseline = (left[3] - right[3]) / focal
    if baseline < 0:
        raise InputError(f"the second camera is {-baseline:g} to the left of the first one, expected it to the right")
    if baseline == 0:
        raise InputError("both cameras stand side by side at a distance of 0, expected a horizontal pair")
    return StereoCamera(focal, baseline, (left[2], left[6]), right[2] - left[2])


def _numbers(text: str | None, count: int, name: str) -> list[float]:
    if text is None:
        raise InputError(f"{name} is missing")
    words = re.split(r"[\s,;]+", text.strip("[] \t"))
    try:
        values = [float(word) for word in words if word]
    except ValueError:
        values = []
    if len(values) != count or not all(map(math.isfinite, values)):
        raise InputError(f"{name} is {text[:60]!r}, expected {count} finite number{'s' * (count > 1)}")
    return values
