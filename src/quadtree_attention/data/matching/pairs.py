"""Image pairs with known geometry. Lists of them are read in evaluation/lists.py, sets with poses in evaluation/pose_sets.py."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import InputError
from ..maps import read_map

Image = str | Path | np.ndarray
Size = tuple[int, int]  # (width, height)


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """Two images: paths, or arrays as read_image takes them.

    size0, size1: (width, height) that an image is resized to before anything else, because its geometry is given in
    such pixels; None leaves it as it is. smooth: average what is shrunk by that; else pixels are picked and
    interpolated. upright: apply the EXIF rotation. turns0, turns1: quarter turns counterclockwise that show an image
    upright to a matcher; the geometry belongs to the image before turning.
    """

    name: str
    image0: Image
    image1: Image
    size0: Size | None = None
    size1: Size | None = None
    smooth: bool = True
    upright: bool = True
    turns0: int = 0
    turns1: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class HomographyPair(Pair):
    """homography [3, 3]: pixels of image 0 -> pixels of image 1."""

    homography: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class PosePair(Pair):
    """K0, K1 [3, 3]: intrinsics in pixels; T_0to1 [4, 4]: points of camera 0 -> points of camera 1, which stand in two places."""

    K0: np.ndarray
    K1: np.ndarray
    T_0to1: np.ndarray

    def __post_init__(self) -> None:
        if not np.linalg.norm(self.T_0to1[:3, 3]) > 0:
            raise InputError(
                f"{self.name}: both cameras are at the same place, so the translation has no direction to measure"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class StereoPair(Pair):
    """Rectified left and right image with the left one's disparity: left x - d = right x."""

    disparity: str | Path | np.ndarray
    scale: float = 1.0  # the file's values over the disparity in pixels: 256 for KITTI's PNG

    def read_disparity(self) -> np.ndarray:
        """Disparity [H, W] float32 in pixels; NaN where it is unknown."""
        values = self.disparity if isinstance(self.disparity, np.ndarray) else read_map(Path(self.disparity))
        if values.ndim != 2:
            raise InputError(
                f"{self.name}: disparity has shape {values.shape}, expected [H, W] with one value per pixel"
            )
        with np.errstate(all="ignore"):  # what is not finite is unknown
            values = values.astype(np.float32) / np.float32(self.scale)
        values[~(np.isfinite(values) & (values > 0))] = np.nan
        return values
