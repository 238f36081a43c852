"""Synthetic stereo pairs from photographs: slanted textured surfaces in layers, with exact disparity and occlusion of both views.

Sample n of a seed is always the same, whatever came before it and whichever worker makes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from ...errors import InputError
from ..loading import SeededData, SeededDataset
from ..photos import Photographs, list_photographs

_SAME = 0.75  # pixels of disparity within which what the other view shows is the same surface


@dataclass(frozen=True)
class Scene:
    """What is in front of the cameras.

    layers: fewest and most surfaces before the background. disparity: least and greatest at the middle of a surface, as a share of
    the width of the view; small ones are more frequent. slant: change of disparity a pixel, either way. thin: share of surfaces that are
    rods of a few pixels. flat: share of surfaces with next to no texture.
    """

    layers: tuple[int, int] = (3, 10)
    disparity: tuple[float, float] = (0.01, 0.35)
    slant: float = 0.15
    thin: float = 0.25
    flat: float = 0.2


@dataclass(frozen=True)
class Views:
    """What tells the two views apart, besides parallax.

    light: gain and gamma, a ratio either way, of each view and, to the square root, of each channel; for a share ``same_light`` there is
    none. noise: greatest standard deviation, of 0..1. blur: greatest standard deviation in pixels, of a share ``blurred`` of views. shift,
    tilt: rows by which rectification is off, in the middle and from there to the edges, at most.
    """

    light: float = 1.35
    same_light: float = 0.3
    noise: float = 0.03
    blur: float = 1.0
    blurred: float = 0.3
    shift: float = 0.4
    tilt: float = 0.4


@dataclass(frozen=True)
class _Surface:
    """A plane with an outline: disparity at left pixel (x, y) is ``plane @ (x, y, 1)``; outline None covers everything."""

    plane: np.ndarray
    outline: np.ndarray | None  # [N, 2], left pixels
    texture: np.ndarray  # [2, 3], left pixels to pixels of the photograph
    photo: np.ndarray
    flat: float  # 0..1, how much of the texture is gone

    def from_right(self) -> np.ndarray:
        """[3, 3]: pixels of the right view to those of the left, ``x = (x_right + b y + c) / (1 - a)``."""
        a, b, c = self.plane
        return np.array([[1 / (1 - a), b / (1 - a), c / (1 - a)], [0, 1, 0], [0, 0, 1]])


class StereoDataset(SeededDataset):
    """Random stereo pairs; sample n depends on the seed and n alone.

    Args:
        photos: paths of photographs. Broken ones are skipped with a warning.
        size: (height, width) of both views.
        length: samples an epoch. Numbers beyond it are valid too, those of later epochs.
        seed: of all chance.
        scene, views: what the pairs show, and how the views differ.

    A sample is a dict of ``left``, ``right`` float32 ``[3, H, W]`` in 0..1; ``disparity``, ``disparity_right`` float32 ``[H, W]`` in pixels, of
    all pixels, hidden ones too; ``occluded``, ``occluded_right`` bool ``[H, W]``, True where the other view does not show the pixel.
    """

    def __init__(
        self,
        photos: Sequence[str | Path],
        size: tuple[int, int] = (96, 320),
        length: int = 1000,
        seed: int = 0,
        scene: Scene | None = None,
        views: Views | None = None,
    ) -> None:
        super().__init__(length, seed)
        self.photos = Photographs(photos)
        if min(size) < 32:
            raise InputError(f"size is {size[0]}x{size[1]}, expected at least 32 pixels on each side")
        self.size = (int(size[0]), int(size[1]))
        self.scene = scene or Scene()
        self.views = views or Views()

    def sample(self, index: int) -> dict[str, torch.Tensor]:
        """Pair ``index``."""
        rng = np.random.default_rng([self.seed, index])
        photos = [self.photos.draw(rng) for _ in range(3)]
        surfaces = random_surfaces(rng, photos, self.size, self.scene)
        (left, disparity, occluded), (right, disparity_right, occluded_right) = render_pair(
            surfaces, self.size, _rectification(rng, self.size, self.views)
        )
        left, right = change_light(rng, left, right, self.views)
        sample: dict[str, Any] = {
            "left": left.transpose(2, 0, 1).copy(),
            "right": right.transpose(2, 0, 1).copy(),
            "disparity": disparity,
            "disparity_right": disparity_right,
            "occluded": occluded,
            "occluded_right": occluded_right,
        }
        return {name: torch.from_numpy(value) for name, value in sample.items()}


def random_surfaces(
    rng: np.random.Generator, photos: Sequence[np.ndarray], size: tuple[int, int], scene: Scene
) -> list[_Surface]:
    """A background, and surfaces before it; no pixel of either view has a disparity below 0."""
    height, width = size
    low, high = (share * width for share in scene.disparity)
    middle = np.array([width / 2, height / 2])
    surfaces = []
    for number in range(int(rng.integers(scene.layers[0], scene.layers[1] + 1)) + 1):
        behind = number == 0
        depth = np.exp(rng.uniform(np.log(low), np.log(high * (0.5 if behind else 1.0))))
        slope = scene.slant * np.clip(rng.normal(0, 0.4, 2), -1, 1) * (1.0 if behind else rng.random() < 0.6)
        outline, centre = None, middle
        if behind:  # its least disparity is at a corner
            reach = np.abs(slope) @ np.array([width, height]) / 2
            depth = max(depth, reach)
        else:
            centre = rng.uniform(0, 1, 2) * [width + depth, height]
            outline = _outline(rng, min(size), rng.random() < scene.thin) + centre
        flat = rng.uniform(0.9, 1.0) if rng.random() < scene.flat else 0.0
        plane = np.array([*slope, depth - slope @ centre])
        photo = photos[int(rng.integers(len(photos)))]
        surfaces.append(_Surface(plane, outline, _texture(rng, photo.shape, size), photo, flat))
    return surfaces


def render_pair(
    surfaces: Sequence[_Surface], size: tuple[int, int], rectification: np.ndarray | None = None
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Images ``[H, W, 3]`` float32 of 0..255, disparity ``[H, W]`` float32 and occlusion ``[H, W]`` bool, of the left and the right view.

    rectification: [3, 3], pixels of the right image as taken to those of the right view as it should be. Disparity and occlusion are those
    of the right view as it should be.
    """
    ideal = np.eye(3)
    views = []
    for right in (False, True):
        to_left = [surface.from_right() if right else ideal for surface in surfaces]
        disparity, winner = _nearest_surface(surfaces, to_left, size)
        image = _painted(surfaces, to_left, winner, size)
        if right and rectification is not None:
            taken = [matrix @ rectification for matrix in to_left]
            image = _painted(surfaces, taken, _nearest_surface(surfaces, taken, size)[1], size)
        views.append((image, disparity, winner))
    columns, rows = np.arange(size[1], dtype=np.float32), np.arange(size[0])[:, None]
    results = []
    for k, sign in ((0, -1), (1, 1)):
        (image, disparity, winner), (_, other_disparity, other_winner) = views[k], views[1 - k]
        place = columns + sign * disparity  # in the other view
        nearest = np.rint(place).astype(np.int64).clip(0, size[1] - 1)
        same = (other_winner[rows, nearest] == winner) | (np.abs(other_disparity[rows, nearest] - disparity) < _SAME)
        results.append((image, disparity, ~same | (place < 0) | (place > size[1] - 1)))
    return results


def change_light(
    rng: np.random.Generator, left: np.ndarray, right: np.ndarray, views: Views
) -> tuple[np.ndarray, np.ndarray]:
    """Light, sharpness and noise of both views: ``[H, W, 3]`` float32 of 0..255 to the same of 0..1."""
    share = 0.0 if rng.random() < views.same_light else rng.uniform()

    def either_way(size: Any, power: float) -> np.ndarray:
        return (views.light ** (power * rng.uniform(-1, 1, size))).astype(np.float32)

    common_gain, common_gamma = either_way(3, 1.0), float(either_way((), 1.0))
    changed = []
    for image in (left, right):
        image = (image / 255).clip(0, 1)
        if rng.random() < views.blurred:
            image = cv2.GaussianBlur(image, (0, 0), 0.3 + rng.uniform(0, views.blur))
        gain = common_gain * either_way((), share) * either_way(3, share / 2)
        image = gain * image ** (common_gamma * float(either_way((), share)))
        image += np.float32(views.noise * rng.uniform() ** 2) * rng.standard_normal(image.shape, np.float32)
        changed.append(image.clip(0, 1).astype(np.float32))
    return changed[0], changed[1]


def _outline(rng: np.random.Generator, side: int, thin: bool) -> np.ndarray:
    """A polygon [N, 2] around the origin."""
    if thin:
        length, half = side * rng.uniform(0.3, 1.5) / 2, rng.uniform(0.7, 4.0)
        corners = np.array([[-length, -half], [length, -half], [length, half], [-length, half]])
        angle = rng.uniform(0, np.pi)
    else:
        count = int(rng.integers(3, 10))
        angles = np.sort(rng.uniform(0, 2 * np.pi, count))
        radius = side * rng.uniform(0.1, 0.7)
        if rng.random() < 0.3:  # something round
            angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
            count = 24
            corners = np.stack([np.cos(angles), np.sin(angles)], 1) * radius * rng.uniform(0.4, 1, 2)
        else:
            corners = np.stack([np.cos(angles), np.sin(angles)], 1) * (radius * rng.uniform(0.5, 1.0, count))[:, None]
        angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return corners @ turn.T


def _texture(rng: np.random.Generator, photo: tuple[int, ...], size: tuple[int, int]) -> np.ndarray:
    """[2, 3]: left pixels to pixels of a photograph: a random place, scale, turn and mirror image."""
    scale, angle = np.exp(rng.uniform(np.log(0.5), np.log(2.0))), rng.normal(0, 0.4)
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = linear @ np.diag([rng.choice([-1.0, 1.0]), 1.0])
    place = rng.uniform(0, 1, 2) * photo[1::-1]
    return np.column_stack([linear, place - linear @ (np.array(size[::-1]) / 2)])


def _nearest_surface(
    surfaces: Sequence[_Surface], to_left: Sequence[np.ndarray], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Greatest disparity ``[H, W]`` float32 at each pixel of a view, and the surface ``[H, W]`` that has it."""
    x, y = np.meshgrid(np.arange(size[1], dtype=np.float64), np.arange(size[0], dtype=np.float64))
    nearest, winner = np.full(size, -np.inf), np.zeros(size, np.int64)
    for number, (surface, matrix) in enumerate(zip(surfaces, to_left, strict=True)):
        a, b, c = surface.plane @ matrix
        disparity = a * x + b * y + c
        closer = (disparity > nearest) & (disparity >= 0)
        if surface.outline is not None:
            corners = np.column_stack([surface.outline, np.ones(len(surface.outline))]) @ np.linalg.inv(matrix).T
            mask = np.zeros(size, np.uint8)
            cv2.fillPoly(mask, [np.rint(corners[:, :2] * 256).clip(-(2**22), 2**22).astype(np.int32)], 1, shift=8)
            closer &= mask.view(bool)
        nearest[closer], winner[closer] = disparity[closer], number
    nearest[np.isinf(nearest)] = 0
    return nearest.astype(np.float32), winner


def _painted(
    surfaces: Sequence[_Surface], to_left: Sequence[np.ndarray], winner: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    """The view ``[H, W, 3]`` float32 of 0..255: each pixel from the photograph of its surface, interpolated once."""
    image = np.zeros((*size, 3), np.float32)
    for number, (surface, matrix) in enumerate(zip(surfaces, to_left, strict=True)):
        mine = winner == number
        if not mine.any():
            continue
        colors = cv2.warpAffine(
            surface.photo,
            surface.texture @ matrix,
            size[::-1],
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT_101,
        )[mine].astype(np.float32)
        if surface.flat:
            plain = surface.photo[surface.photo.shape[0] // 2, surface.photo.shape[1] // 2].astype(np.float32)
            colors = surface.flat * plain + (1 - surface.flat) * colors
        image[mine] = colors
    return image


def _rectification(rng: np.random.Generator, size: tuple[int, int], views: Views) -> np.ndarray:
    """[3, 3]: pixels of the right image as taken to those as it should be: rows off by a little, and by a little more at the edges."""
    shift, tilt = views.shift * rng.uniform(-1, 1), views.tilt * rng.uniform(-1, 1) / (size[1] / 2)
    return np.array([[1, 0, 0], [tilt, 1, shift - tilt * size[1] / 2], [0, 0, 1.0]])


class StereoData(SeededData):
    """Synthetic pairs for training and validation, each from a folder of photographs.

    Args:
        train_folder, val_folder: searched for photographs, folders below them too.
        size: (height, width) of the views.
        batch_size: pairs a device and step.
        length: training pairs an epoch, over all devices.
        val_length: validation pairs, always the same ones.
        num_workers: processes that make pairs; the pairs do not depend on it.
        seed, scene, views: see `StereoDataset`.
    """

    def __init__(
        self,
        train_folder: str,
        val_folder: str,
        size: tuple[int, int] = (96, 320),
        batch_size: int = 4,
        length: int = 10_000,
        val_length: int = 100,
        num_workers: int = 2,
        seed: int = 0,
        scene: Scene | None = None,
        views: Views | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers)
        self.train_folder, self.val_folder, self.size = train_folder, val_folder, size
        self.length, self.val_length, self.seed = length, val_length, seed
        self.scene, self.views = scene, views

    def dataset(self, training: bool) -> StereoDataset:
        """The pairs of training or of validation."""
        folder, length, seed = (
            (self.train_folder, self.length, self.seed)
            if training
            else (self.val_folder, self.val_length, self.seed + 1)
        )
        return StereoDataset(list_photographs(folder), self.size, length, seed, self.scene, self.views)
