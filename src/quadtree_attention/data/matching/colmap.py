"""Photographs with a COLMAP model as ground truth."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ...errors import InputError, check_range
from ...extras import require
from ..arrays import camera_matrix, pose_matrix
from ..warp import with_long_side
from . import colmap_model
from .posed import check_longest, pair_sample, posed_image

_MODELS = ("PINHOLE", "SIMPLE_PINHOLE")
_LONGEST = 100_000  # pixels of a side of an image
_SECONDS, _MEMORY = 60, 2 << 30  # that reading an empty model may take
MODEL_PLACES = ("", "sparse", "sparse/0")  # of a model under its folder


class ColmapScene(Dataset):
    """The pairs of one COLMAP model, with what the model knows of them.

    Where COLMAP's dense stereo has been run (``stereo/depth_maps/NAME.geometric.bin``) its depth maps are the truth, as of the other layouts;
    images without one are then left out, with a warning. Else it is the points of the model that both images show: a sample then has float32
    ``points0``, ``points1`` ``[P, 3]`` (pixel x, y and depth of the same points, zeros fill up) in place of depths; see `point_supervision` for what
    can be said by these.

    Args:
        root: folder of a model without distortion, as `colmap image_undistorter` makes it: images/, and cameras, images and points3D (.bin or
            .txt) in it, in sparse/ or in sparse/0/.
        min_overlap, max_overlap: of a pair: points that both images show, as a share of those of the image that has fewer.
        longest, multiple, pad: see `MegaDepthScene`.
        points: P, drawn at random where a pair has more.

    Raises ValueError or OSError in one line for files that are missing or of another form.
    """

    def __init__(
        self,
        root: str | Path,
        min_overlap: float = 0.1,
        max_overlap: float = 0.9,
        longest: int = 640,
        multiple: int = 8,
        pad: bool = True,
        points: int = 1024,
    ) -> None:
        check_longest(longest, multiple)
        check_range("points", points, 1)
        check_range("max_overlap", max_overlap, 0, 1)
        check_range("min_overlap", min_overlap, 0, max_overlap)
        self.root, self.longest, self.multiple, self.pad, self.points = Path(root), longest, multiple, pad, points
        self.views = read_views(self.root)
        mapped = [view for view in self.views if self._depth_file(view).is_file()]
        self.dense = bool(mapped)
        if self.dense and len(mapped) < len(self.views):
            left_out = len(self.views) - len(mapped)
            warnings.warn(
                f"{root}: {left_out} of {len(self.views)} images have no depth map and are left out", stacklevel=2
            )
            self.views = mapped
        self.pairs = pairs_by_overlap(self.views, min_overlap, max_overlap, self.root)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, number: int) -> dict[str, Any]:
        views = [self.views[k] for k in self.pairs[number]]
        parts = []
        for view in views:
            size = with_long_side(view.size, self.longest, self.multiple)
            side = self.longest // self.multiple * self.multiple if self.pad else None
            depth = self._depth(view) if self.dense else None
            path = self.root / "images" / view.name
            parts.append(posed_image(path, view.K, view.size, size, side, depth, smooth=True))
        if not self.dense:
            shared = np.array(sorted(views[0].points.keys() & views[1].points.keys()))
            if len(shared) > self.points:
                shared = np.random.default_rng(number).permutation(shared)[: self.points]
            for part, view in zip(parts, views, strict=True):
                part["points"] = self._points(view, shared, part["K"].numpy().astype(np.float64))
        return pair_sample(parts[0], parts[1], views[1].pose @ np.linalg.inv(views[0].pose))

    def _depth_file(self, view: ModelImage) -> Path:
        return self.root / "stereo" / "depth_maps" / f"{view.name}.geometric.bin"

    def _depth(self, view: ModelImage) -> np.ndarray:
        return read_depth(self._depth_file(view))

    def _points(self, view: ModelImage, shared: np.ndarray, K: np.ndarray) -> torch.Tensor:
        points = np.zeros((self.points, 3), np.float32)
        if len(shared):
            there = np.stack([view.points[k] for k in shared]) @ view.pose[:3, :3].T + view.pose[:3, 3]
            pixels = there @ K.T
            points[: len(shared)] = np.c_[pixels[:, :2] / pixels[:, 2:], there[:, 2]]
        return torch.from_numpy(points)


def read_views(root: Path) -> list[ModelImage]:
    """The images of a model that have a pose and whose files are there, in COLMAP's order; raises as `ColmapScene`."""
    folder, model = _read(root)
    views = [ModelImage(model, image, folder) for image in model["images"]]
    for view in views:
        if not (root / "images" / view.name).is_file():
            raise FileNotFoundError(f"{root / 'images' / view.name} does not exist, but the model has it")
    return views


def pairs_by_overlap(views: list[ModelImage], least: float, most: float, root: Path) -> list[tuple[int, int]]:
    """Numbers of views whose overlap is above ``least`` and up to ``most``; ValueError if there are none."""
    pairs = [
        (i, j)
        for i, first in enumerate(views)
        for j, second in enumerate(views[i + 1 :], i + 1)
        if least < first.overlap(second) <= most
    ]
    if not pairs:
        raise InputError(f"{root}: no pair of images with an overlap above {least} and up to {most}")
    return pairs


class ModelImage:
    """What is needed of one image of a model, free of pycolmap's objects, which cannot be sent to other processes."""

    def __init__(self, model: dict[str, Any], image: tuple[str, int, np.ndarray, np.ndarray], where: Path) -> None:
        self.name, camera_id, pose, ids = image
        if camera_id not in model["models"]:
            raise InputError(f"{where}: the model has no camera {camera_id}, which {self.name[:100]} is of")
        if camera_id not in model["cameras"]:
            raise InputError(
                f"{where}: {self.name[:100]} has the camera model {model['models'][camera_id]}, expected {' or '.join(_MODELS)}; "
                "run colmap image_undistorter first"
            )
        _, width, height, K = model["cameras"][camera_id]
        if not (0 < width <= _LONGEST and 0 < height <= _LONGEST):
            raise InputError(
                f"{where}: camera {camera_id} has {width}x{height} pixels, expected 1 to {_LONGEST} on each side"
            )
        self.size = (width, height)
        self.K = camera_matrix(K, f"{where}: camera {camera_id}")
        self.K[:2, 2] -= 0.5  # COLMAP has the centre of the first pixel at (0.5, 0.5)
        self.pose = pose_matrix(pose, f"{where}: {self.name[:100]}")
        try:
            self.points = {number: model["xyz"][number] for number in ids.tolist()}
        except KeyError as error:
            raise InputError(f"{where}: the model has no point {error}, which {self.name[:100]} shows") from None

    def overlap(self, other: ModelImage) -> float:
        fewer = min(len(self.points), len(other.points))
        return len(self.points.keys() & other.points.keys()) / fewer if fewer else 0.0


def _read(root: Path) -> tuple[Path, dict[str, Any]]:
    for place in MODEL_PLACES:
        folder = root / place
        if any((folder / f"cameras.{suffix}").is_file() for suffix in ("bin", "txt")):
            return folder, read_model(folder)
    tried = ", ".join(str(root / place) for place in MODEL_PLACES)
    raise FileNotFoundError(f"no COLMAP model (cameras.bin or cameras.txt) found in {tried}")


def read_model(folder: Path) -> dict[str, Any]:
    """What `colmap_model` tells of a model, read in a process that may die; "xyz" has its points by number.

    Raises:
        InputError: it is damaged.
    """
    require("pycolmap", "scenes")
    size = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".bin", ".txt") and path.is_file())
    command = [sys.executable, colmap_model.__file__, str(folder), str(_MEMORY + 50 * size)]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=_SECONDS + size / 1e6)
    except subprocess.TimeoutExpired:
        raise InputError(f"{folder}: not a COLMAP model, or damaged: reading it takes too long") from None
    if done.returncode == 1:  # a bug of ours
        raise RuntimeError(done.stderr.decode("utf-8", "replace"))
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines() if done.returncode == 3 else []
        reason = said[-1][:200] if said else "it ends the process that reads it"
        raise InputError(f"{folder}: not a COLMAP model, or damaged ({reason})")
    model = pickle.loads(done.stdout)
    if not np.isfinite(model["points"]).all():
        raise InputError(f"{folder}: the model has points that are not finite")
    model["xyz"] = dict(zip(model.pop("ids").tolist(), model.pop("points"), strict=True))
    return model


def read_depth(path: Path) -> np.ndarray:
    """A depth map ``[H, W]`` float32 of COLMAP's dense stereo: "width&height&1&", then the numbers."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise type(error)(f"{path} cannot be read: {error.strerror or error}") from None
    head = re.match(rb"(\d{1,6})&(\d{1,6})&1&", content)
    if not head or int(head[1]) * int(head[2]) * 4 != len(content) - head.end() or len(content) == head.end():
        raise InputError(f"{path}: not a depth map of COLMAP's, or damaged")
    return np.frombuffer(content, "<f4", offset=head.end()).reshape(int(head[2]), int(head[1])).astype(np.float32)
