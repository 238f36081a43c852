"""Synthetic scenes: rooms and yards full of boxes and boards with photographs on them, and random pairs of views of these.

Scene n and pair n of a seed are always the same, whatever came before them and whichever worker makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from ...errors import InputError, check_fields, check_range
from ...files import list_photographs
from ..appearance import Appearance, change_appearance
from ..loading import SeededData, SeededDataset
from ..photos import Photographs, read_gray
from .homography import HomographyDataset
from .pairs import PosePair
from .render import Rectangle, Rendering, Scene, look_at, overlap

_TRIES = 200  # random cameras before giving up
_COARSE = 24  # pixels of the longer side of the depth maps that cameras are judged by
_CLOSE = 0.3  # metres: cameras are no nearer to anything

Texture = Callable[[int], np.ndarray]


@dataclass(frozen=True)
class Motion:
    """How two cameras differ.

    baseline: distance of the cameras, as a share of the median depth that the first one sees; the least and the most. turn: of the point
    that the second one looks at from the one that the first looks at, likewise. roll: of each in its image plane, degrees either way.
    overlap: share of either image that the other shows, the least and the most. field: width that an image shows at distance 1, the least
    and the most; both cameras have the same.
    """

    baseline: tuple[float, float] = (0.05, 0.6)
    turn: float = 0.3
    roll: float = 15.0
    overlap: tuple[float, float] = (0.25, 0.95)
    field: tuple[float, float] = (0.8, 1.4)

    def __post_init__(self) -> None:
        check_fields(
            self, {"baseline": (0.001, 10), "turn": (0, 10), "roll": (0, 180), "overlap": (0, 1), "field": (0.1, 10)}
        )


class Place(NamedTuple):
    """A scene, and the box of ``extent`` metres ``[3]`` from the origin in which cameras stand."""

    scene: Scene
    extent: np.ndarray


class Cameras(NamedTuple):
    """Intrinsics of both ``[3, 3]``, poses ``[4, 4]`` (world to camera), and the overlap of what they see."""

    K: np.ndarray
    pose0: np.ndarray
    pose1: np.ndarray
    overlap: float

    @property
    def T_0to1(self) -> np.ndarray:
        """Points of camera 0 to points of camera 1, ``[4, 4]``."""
        return self.pose1 @ np.linalg.inv(self.pose0)


class SceneMaker:
    """Random scenes with parts of photographs as textures.

    Args:
        photos: paths of photographs. Broken files are skipped with a warning.
        seed: of all random choices.
    """

    def __init__(self, photos: Sequence[str | Path], seed: int = 0) -> None:
        self.photos = Photographs(photos)
        self.seed = seed

    def __call__(self, number: int) -> Place:
        """Scene ``number``: two of three are rooms, the others yards without walls or ceiling."""
        rng = np.random.default_rng([self.seed, 0, number])
        photos = [self.photos.draw(rng, lambda path: read_gray(path, 256)) for _ in range(16)]

        def texture(side: int) -> np.ndarray:
            return _part(rng, photos[rng.integers(len(photos))], side)

        def wall(side: int) -> np.ndarray:
            parts = [texture(side) for _ in range(4)]
            return np.block([parts[:2], parts[2:]])

        extent = rng.uniform([4.0, 4.0, 2.4], [8.0, 8.0, 3.5])
        width, length, height = extent
        if rng.random() < 2 / 3:
            parts = _box(rng, extent[:2] / 2, 0.0, extent, wall)
            floor = [[0, 0, 0], [width, 0, 0], [0, length, 0]]
        else:
            parts = []
            floor = [[-width, -length, 0], [3 * width, 0, 0], [0, 3 * length, 0]]
        corner, across, down = np.array(floor, np.float64)
        parts.append(_rectangle(rng, corner, across, down, wall))
        for _ in range(rng.integers(3, 9)):
            size = rng.uniform([0.3, 0.3, 0.3], [1.5, 1.5, 0.7 * height])
            parts += _box(rng, rng.uniform([0, 0], extent[:2]), rng.uniform(0, np.pi), size, texture)
        for _ in range(rng.integers(2, 8)):  # boards, hung up anywhere and anyhow
            frame = np.linalg.qr(rng.normal(size=(3, 3)))[0] * rng.uniform(0.5, 1.5, 3)
            middle = rng.uniform([0, 0, 0.5], extent)
            parts.append(_rectangle(rng, middle - frame[:, 0] / 2 - frame[:, 1] / 2, frame[:, 0], frame[:, 1], texture))
        return Place(Scene(parts, sky=int(rng.integers(120, 250))), extent)


def random_cameras(
    rng: np.random.Generator, place: Place, size: tuple[int, int], motion: Motion | None = None
) -> Cameras:
    """Two cameras that see enough of each other's image ``size`` (height, width), but not all of it.

    Raises:
        ValueError: none found: the scene has no views that fit ``motion``.
    """
    motion = motion or Motion()
    least, most = motion.overlap
    height, width = size
    rows, columns = (max(1, round(side * _COARSE / max(size))) for side in size)
    shrink = np.diag([columns / width, rows / height, 1.0])
    shrink[:2, 2] = [(columns / width - 1) / 2, (rows / height - 1) / 2]
    for _ in range(_TRIES):
        focal = width / rng.uniform(*motion.field)
        K = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
        first = rng.uniform([0.1, 0.1, 0.2], [0.9, 0.9, 0.8]) * place.extent
        target = rng.uniform([0, 0, 0], [1, 1, 0.9]) * place.extent
        pose0 = _camera(rng, first, target, motion)
        depth0 = place.scene.depth(shrink @ K, pose0, (rows, columns))
        if (depth0 > 0).mean() < 0.6 or depth0[depth0 > 0].min() < _CLOSE:
            continue
        reach = float(np.median(depth0[depth0 > 0]))
        ahead = first + (target - first) / np.linalg.norm(target - first) * reach
        for _ in range(8):
            move = rng.normal(size=3) * [1, 1, 0.4]
            second = first + move / np.linalg.norm(move) * reach * rng.uniform(*motion.baseline)
            if not ((second > 0.05 * place.extent) & (second < 0.95 * place.extent)).all():
                continue
            pose1 = _camera(rng, second, ahead + rng.uniform(-1, 1, 3) * motion.turn * reach, motion)
            depth1 = place.scene.depth(shrink @ K, pose1, (rows, columns))
            if not (depth1 > 0).any() or depth1[depth1 > 0].min() < _CLOSE:
                continue
            share = overlap(depth0, depth1, shrink @ K, pose1 @ np.linalg.inv(pose0))
            if least <= share <= most:
                return Cameras(K, pose0, pose1, share)
    raise InputError(f"no two cameras found for {motion}; widen its overlap, or lower its baseline and turn")


class MadeScenes(SeededDataset):
    """Random pairs of views of made-up scenes; sample n depends on the seed and n alone.

    Args:
        photos: paths of photographs to take textures from.
        size: (height, width) of both views.
        length: samples per epoch. Larger indices are valid too: they belong to later epochs.
        seed: of all random choices.
        motion: how far apart the cameras are.
        appearance, difficulty: what else happens to the images, as in `HomographyDataset`, occluders left out; difficulty 0 to 1.
        pairs: of each scene, in a row.
        homographies: share of the pairs that are not of a scene, but of a photograph under a random homography, as `HomographyDataset` makes
            them.

    A sample is a dict of ``supervision`` "depth"; and float32:
    ``image0``, ``image1`` ``[1, H, W]`` in 0..1; ``depth0``, ``depth1`` ``[H, W]``, 0 where unknown; ``K0``,
    ``K1`` ``[3, 3]``; ``T_0to1`` ``[4, 4]``. Of a homography see `as_posed`.
    """

    def __init__(
        self,
        photos: Sequence[str | Path],
        size: tuple[int, int] = (240, 320),
        length: int = 1000,
        seed: int = 0,
        motion: Motion | None = None,
        appearance: Appearance | None = None,
        difficulty: float = 0.5,
        pairs: int = 2,
        homographies: float = 0.0,
    ) -> None:
        super().__init__(length, seed)
        check_range("pairs", pairs, 1)
        check_range("homographies", homographies, 0, 1)
        check_range("difficulty", difficulty, 0, 1)
        self.planes = HomographyDataset(photos, size, length, seed, appearance=appearance)  # checks photos and size
        self.scenes = SceneMaker(photos, seed)
        self.size = self.planes.size
        self.motion, self.appearance = motion, appearance or Appearance()
        self.difficulty, self.pairs, self.homographies = difficulty, pairs, homographies
        self._last: tuple[int, Place] | None = None

    def sample(self, index: int) -> dict[str, Any]:
        """Pair ``index``."""
        rng = np.random.default_rng([self.seed, 1, index])
        if rng.random() < self.homographies:
            return as_posed(self.planes[index])
        cameras, *views = self._views(rng, index)
        K, T = (torch.from_numpy(matrix.astype(np.float32)) for matrix in (cameras.K, cameras.T_0to1))
        sample: dict[str, Any] = {"supervision": "depth", "K0": K, "K1": K, "T_0to1": T}
        for k, view in enumerate(views):
            image = change_appearance(rng, view.image, self.appearance, self.difficulty)
            sample[f"image{k}"], sample[f"depth{k}"] = torch.from_numpy(image)[None], torch.from_numpy(view.depth)
        return sample

    def pair(self, index: int) -> PosePair:
        """Pair ``index`` to evaluate a matcher with: of a scene, whatever ``homographies`` says; its images have 8 bits."""
        rng = np.random.default_rng([self.seed, 1, index])
        rng.random()  # what a sample draws first
        cameras, *views = self._views(rng, index)
        images = [np.rint(change_appearance(rng, v.image, self.appearance, self.difficulty) * 255) for v in views]
        image0, image1 = (image.astype(np.uint8) for image in images)
        return PosePair(
            name=f"scene {index // self.pairs} pair {index % self.pairs}",
            image0=image0,
            image1=image1,
            K0=cameras.K,
            K1=cameras.K,
            T_0to1=cameras.T_0to1,
        )

    def _views(self, rng: np.random.Generator, index: int) -> tuple[Cameras, Rendering, Rendering]:
        number = index // self.pairs
        if self._last is None or self._last[0] != number:
            self._last = number, self.scenes(number)
        place = self._last[1]
        cameras = random_cameras(rng, place, self.size, self.motion)
        view0, view1 = (place.scene.render(cameras.K, pose, self.size) for pose in (cameras.pose0, cameras.pose1))
        return cameras, view0, view1


class MadeScenesData(SeededData):
    """Made-up scenes for training and validation, each from a folder of photographs.

    Args:
        train_folder, val_folder: folders that are searched for photographs, including their subfolders.
        size: (height, width) of the views.
        batch_size: pairs per device and step.
        length: training pairs per epoch, over all devices.
        val_length: number of validation pairs, which are always the same, all of scenes.
        num_workers: worker processes that make pairs; the pairs do not depend on their number.
        seed, motion, appearance, difficulty, pairs, homographies: see `MadeScenes`; seed + 1 is that of validation.
    """

    def __init__(
        self,
        train_folder: str,
        val_folder: str,
        size: tuple[int, int] = (240, 320),
        batch_size: int = 4,
        length: int = 10_000,
        val_length: int = 200,
        num_workers: int = 2,
        seed: int = 0,
        motion: Motion | None = None,
        appearance: Appearance | None = None,
        difficulty: float = 0.5,
        pairs: int = 2,
        homographies: float = 0.0,
    ) -> None:
        super().__init__(batch_size, num_workers)
        self.train_folder, self.val_folder = train_folder, val_folder
        self.length, self.val_length, self.seed, self.homographies = length, val_length, seed, homographies
        self.options: dict[str, Any] = dict(
            size=size, motion=motion, appearance=appearance, difficulty=difficulty, pairs=pairs
        )

    def dataset(self, training: bool) -> MadeScenes:
        """The pairs for training or validation."""
        if training:
            photos, homographies = list_photographs(self.train_folder), self.homographies
            return MadeScenes(photos, length=self.length, seed=self.seed, homographies=homographies, **self.options)
        return MadeScenes(list_photographs(self.val_folder), length=self.val_length, seed=self.seed + 1, **self.options)


def as_posed(sample: dict[str, Any]) -> dict[str, Any]:
    """A sample of `HomographyDataset` in the terms of depth and pose, so that both kinds can share a batch.

    With intrinsics of 1, depth 1 all over image 0, and the homography for a rotation, a pixel (x, y, 1) becomes its homogeneous image, of which
    the third entry is the depth in image 1. Only that it is no rotation tells such a pair from another.
    """
    homography = sample["homography"].double()
    inverse = torch.linalg.inv(homography)
    height, width = sample["visible1"].shape
    x, y = torch.arange(width, dtype=torch.float64), torch.arange(height, dtype=torch.float64)[:, None]
    depth1 = 1 / (inverse[2, 0] * x + inverse[2, 1] * y + inverse[2, 2])
    T = torch.eye(4)
    T[:3, :3] = homography
    return {
        "supervision": "depth",
        "image0": sample["image0"],
        "image1": sample["image1"],
        "depth0": sample["visible0"].float(),
        "depth1": (depth1.clamp(min=0) * sample["visible1"]).float(),
        "K0": torch.eye(3),
        "K1": torch.eye(3),
        "T_0to1": T,
    }


def _camera(rng: np.random.Generator, position: np.ndarray, target: np.ndarray, motion: Motion) -> np.ndarray:
    return look_at(position, target, np.deg2rad(rng.uniform(-motion.roll, motion.roll)))


def _rectangle(
    rng: np.random.Generator, corner: np.ndarray, across: np.ndarray, down: np.ndarray, texture: Texture
) -> Rectangle:
    return Rectangle(corner, across, down, texture(256), rng.uniform(0.6, 1.1))


def _box(
    rng: np.random.Generator, middle: np.ndarray, yaw: float, size: np.ndarray, texture: Texture
) -> list[Rectangle]:
    """Four sides and the top of a box that stands on the floor."""
    cosine, sine = np.cos(yaw), np.sin(yaw)
    x, y = np.array([cosine, sine, 0]) * size[0], np.array([-sine, cosine, 0]) * size[1]
    up = np.array([0.0, 0.0, size[2]])
    corner = np.array([*middle, 0.0]) - x / 2 - y / 2
    sides = [(corner, x), (corner + x, y), (corner + x + y, -x), (corner + y, -y)]
    parts = [_rectangle(rng, start + up, along, -up, texture) for start, along in sides]
    return [*parts, _rectangle(rng, corner + up, x, y, texture)]


def _part(rng: np.random.Generator, photo: np.ndarray, side: int) -> np.ndarray:
    """A random square of a photograph, ``[side, side]``: as large as fits, or down to half of that."""
    width = int(min(photo.shape) * rng.uniform(0.5, 1.0))
    top, left = (int(rng.integers(have - width + 1)) for have in photo.shape)
    return cv2.resize(photo[top : top + width, left : left + width], (side, side), interpolation=cv2.INTER_LINEAR)
