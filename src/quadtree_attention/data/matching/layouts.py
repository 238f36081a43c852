"""ScanNet and MegaDepth as LoFTR's training indexes describe them: a dataset per scene, with pairs whose overlap is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from ...errors import InputError
from ...extras import require
from ..arrays import camera_matrix, entries, entry, pose_matrix, read_arrays, read_numbers
from ..maps import read_map
from ..warp import with_long_side
from .posed import Size, check_longest, pair_sample, posed_image


class ScanNetScene(Dataset):
    """The pairs of one scene (or of a list of pairs) of ScanNet.

    Args:
        root: folder of sceneSSSS_UU/color/FRAME.jpg, depth/FRAME.png (16 bits, millimetres) and pose/FRAME.txt (camera to world), as
            ScanNet's python export has them.
        index: .npz with ``name`` ``[N, 4]`` (scene, sub-scene, frame 0, frame 1), and for training ``score`` ``[N]``, the overlap.
        intrinsics: .npz, scene -> ``[3, 3]`` of the depth camera, for 640 x 480; or what `read_arrays` reads of it.
        min_overlap: pairs with a score have more than this; 0.4 as published.
        poses: folder of the poses, if they do not lie in ``root``.
        size: (width, height) of the images; 640 x 480 as published.

    A sample is one of `MadeScenes`, and has ``to_stored0``, ``to_stored1`` ``[3, 3]``: pixels to those of images of 640 x 480.

    Raises ValueError or OSError in one line for files that are missing or of another form.
    """

    def __init__(
        self,
        root: str | Path,
        index: str | Path,
        intrinsics: str | Path | Mapping[str, Any],
        min_overlap: float = 0.4,
        poses: str | Path | None = None,
        size: Size = (640, 480),
    ) -> None:
        self.root, self.poses, self.size = Path(root), Path(poses or root), (size[0], size[1])
        self.intrinsics = intrinsics if isinstance(intrinsics, Mapping) else read_arrays(intrinsics)
        arrays = read_arrays(index)
        names = np.asarray(entry(arrays, "name", index))
        if names.ndim != 2 or names.shape[1] != 4 or names.dtype.kind not in "iu":
            raise InputError(
                f"{index}: 'name' has shape {names.shape} of {names.dtype}, expected whole numbers [N, 4]: scene, sub-scene, two frames"
            )
        if "score" in arrays:
            scores = np.asarray(arrays["score"])
            if scores.shape != names.shape[:1] or scores.dtype.kind not in "iuf":
                raise InputError(
                    f"{index}: 'score' has shape {scores.shape}, expected ({len(names)},), as many as names, of numbers"
                )
            names = names[scores > min_overlap]
        self.names = names.astype(np.int32)
        _some(self.names, index, min_overlap)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: int) -> dict[str, Any]:
        main, sub, *frames = self.names[number].tolist()
        scene = f"scene{main:04d}_{sub:02d}"
        K = camera_matrix(entry(self.intrinsics, scene, "intrinsics"), f"intrinsics: {scene}")
        parts, poses = [], []
        for frame in frames:
            depth = _checked_depth(read_map, self.root / scene / "depth" / f"{frame}.png") / 1000
            image = self.root / scene / "color" / f"{frame}.jpg"
            parts.append(posed_image(image, K, (640, 480), self.size, depth=depth))
            poses.append(read_pose(self.poses / scene / "pose" / f"{frame}.txt"))
        return pair_sample(parts[0], parts[1], np.linalg.inv(poses[1]) @ poses[0])


class MegaDepthScene(Dataset):
    """The pairs of one scene of MegaDepth.

    Args:
        root: folder of what the index names: phoenix/S6/zl548/MegaDepth_v1/SSSS/dense0/depths/NAME.h5, and the images, either
            Undistorted_SfM/SSSS/images/NAME.jpg of D2-Net's processing, or where these are missing MegaDepth_v1's own beside the depth maps,
            dense0/imgs/NAME.jpg.
        index: .npz with ``image_paths``, ``depth_paths``, ``intrinsics`` ``[3, 3]`` of the images as stored, ``poses`` ``[4, 4]`` (world to
            camera), and ``pair_infos``: ((i, j), overlap, ...) each. Its intrinsics are COLMAP's: the centre of the first pixel is at (0.5, 0.5).
        min_overlap: pairs have more than this; 0 as published.
        longest: pixels of the longer side; 832 was the quadtree model's, 840 and 640 LoFTR's, 1200 the evaluation's.
        multiple: both sides are rounded down to multiples of it.
        pad: with zeros, to a square of the longer side, so that images can share a batch.

    A sample is one of `MadeScenes`, and has ``to_stored0``, ``to_stored1`` ``[3, 3]``: pixels to those of the images as stored; with padding also
    ``mask0``, ``mask1`` bool ``[H, W]``. Raises like `ScanNetScene`.
    """

    def __init__(
        self,
        root: str | Path,
        index: str | Path,
        min_overlap: float = 0.0,
        longest: int = 832,
        multiple: int = 8,
        pad: bool = True,
    ) -> None:
        check_longest(longest, multiple)
        self.root, self.index, self.longest, self.multiple, self.pad = Path(root), index, longest, multiple, pad
        arrays = read_arrays(index)
        keys = ("image_paths", "depth_paths", "intrinsics", "poses")
        self.images, self.depths, self.intrinsics, self.camera = (entries(arrays, key, index) for key in keys)
        count = min(map(len, (self.images, self.depths, self.intrinsics, self.camera)))
        infos = overlapping(entries(arrays, "pair_infos", index), count, index)
        pairs = [(i, j) for i, j, overlap in infos if overlap > min_overlap]
        self.pairs = np.array(pairs, np.int32).reshape(-1, 2)
        _some(self.pairs, index, min_overlap)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, number: int) -> dict[str, Any]:
        pair = self.pairs[number]
        parts = []
        for k in pair:
            depth = _checked_depth(_read_h5, self.root / str(self.depths[k]))
            stored = (depth.shape[1], depth.shape[0])  # depth maps are as large as the images
            size = with_long_side(stored, self.longest, self.multiple)
            side = self.longest // self.multiple * self.multiple if self.pad else None
            K = camera_matrix(self.intrinsics[k], f"{self.index}: entry {k} of 'intrinsics'")
            K[:2, 2] -= 0.5
            parts.append(posed_image(self._image(k), K, stored, size, side, depth))
        world = [pose_matrix(self.camera[k], f"{self.index}: entry {k} of 'poses'") for k in pair]
        return pair_sample(parts[0], parts[1], world[1] @ np.linalg.inv(world[0]))

    def _image(self, k: int) -> Path:
        undistorted = self.root / str(self.images[k])
        if undistorted.is_file():
            return undistorted
        depth = Path(self.depths[k])
        own = self.root / depth.parent.parent / "imgs" / f"{depth.stem}{undistorted.suffix}"
        if not own.is_file():
            raise FileNotFoundError(f"{undistorted} does not exist, nor does {own}; expected one of them")
        return own


def _checked_depth(read: Callable[[Path], np.ndarray], path: Path) -> np.ndarray:
    """A depth map ``[H, W]`` float32."""
    depth = read(path)
    if depth.ndim != 2 or not depth.size or depth.dtype.kind not in "uif":
        raise InputError(f"{path}: has shape {depth.shape} of {depth.dtype}, expected a depth map [H, W] of numbers")
    return depth.astype(np.float32)


def _read_h5(path: Path) -> np.ndarray:
    h5py = require("h5py", "scenes")
    try:
        with h5py.File(path, "r") as file:
            return np.asarray(file["depth"])
    except OSError as error:
        raise type(error)(f"{path} cannot be read: {error.strerror or error}") from None
    except KeyError:
        raise InputError(f"{path}: no data set 'depth' in it, expected a depth map [H, W]") from None


def _some(pairs: np.ndarray, index: str | Path, min_overlap: float) -> None:
    if not len(pairs):
        raise InputError(
            f"{index}: no pair with an overlap above {min_overlap}; leave the scene out, or lower min_overlap"
        )


def read_pose(path: Path) -> np.ndarray:
    """A pose ``[4, 4]`` of a text file, as ScanNet has them: camera to world."""
    return pose_matrix(read_numbers(path, "a pose"), str(path))


def overlapping(infos: Any, images: int, path: Any) -> list[tuple[int, int, float]]:
    """(i, j, overlap) of each entry of MegaDepth's ``pair_infos``; ValueError for another form, or unless i and j are below ``images``."""
    try:
        pairs = [(int(info[0][0]), int(info[0][1]), float(info[1])) for info in infos]
    except (TypeError, ValueError, IndexError):
        raise InputError(f"{path}: 'pair_infos' is of another form, expected ((i, j), overlap, ...) each") from None
    for row, (i, j, _) in enumerate(pairs):
        if not (0 <= i < images and 0 <= j < images):
            raise InputError(f"{path}: pair {row} is of images {i} and {j}, expected numbers below {images}")
    return pairs
