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

from ...errors import check_fields
from ...files import list_photographs
from ..loading import SeededData, SeededDataset, check_size
from ..photos import Photographs
from .scenes import Scene, random_surfaces, render_pair


@dataclass(frozen=True)
class Views:
    """What tells the two views apart, besides parallax.

    light: gain and gamma, a ratio either way, of each view and, to the square root, of each channel; for a share ``same_light`` there is
    none. noise: greatest standard deviation, of 0..1. blur: greatest standard deviation in pixels, of a share ``blurred`` of views. shift,
    tilt: rows by which rectification is off, in the middle and from there to the edges, at most. spots: share of pairs with highlights and shadows
    that are elsewhere in the other view. jpeg: share of pairs that went through JPEG, of a quality from 40 to 95.
    """

    light: float = 1.35
    same_light: float = 0.3
    noise: float = 0.03
    blur: float = 1.0
    blurred: float = 0.3
    shift: float = 0.4
    tilt: float = 0.4
    spots: float = 0.25
    jpeg: float = 0.3

    def __post_init__(self) -> None:
        shares = dict.fromkeys(("same_light", "noise", "blurred", "spots", "jpeg"), (0, 1))
        check_fields(self, {"light": (1, 10), "blur": (0, 100), "shift": (0, 1000), "tilt": (0, 1000)} | shares)


class StereoDataset(SeededDataset):
    """Random stereo pairs; sample n depends on the seed and n alone.

    Args:
        photos: paths of photographs. Broken files are skipped with a warning.
        size: (height, width) of both views.
        length: samples per epoch. Larger indices are valid too: they belong to later epochs.
        seed: of all random choices.
        scene, views: what the pairs show, and how the views differ.
        relight: whether light, noise and sharpness of the views are changed; without it they differ by their rows alone.

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
        relight: bool = True,
    ) -> None:
        super().__init__(length, seed)
        self.photos = Photographs(photos)
        check_size(size)
        self.size = (int(size[0]), int(size[1]))
        self.scene = scene or Scene()
        self.views, self.relight = views or Views(), relight

    def sample(self, index: int) -> dict[str, torch.Tensor]:
        """Pair ``index``."""
        rng = np.random.default_rng([self.seed, index])
        photos = [self.photos.draw(rng) for _ in range(5)]
        surfaces = random_surfaces(rng, photos, self.size, self.scene)
        (left, disparity, occluded), (right, disparity_right, occluded_right) = render_pair(
            surfaces, self.size, _rectification(rng, self.size, self.views)
        )
        if self.relight:
            left, right = change_light(rng, left, right, self.views)
        else:
            left, right = left / 255, right / 255
        sample: dict[str, Any] = {
            "left": left.transpose(2, 0, 1).copy(),
            "right": right.transpose(2, 0, 1).copy(),
            "disparity": disparity,
            "disparity_right": disparity_right,
            "occluded": occluded,
            "occluded_right": occluded_right,
        }
        return {name: torch.from_numpy(value) for name, value in sample.items()}


def change_light(
    rng: np.random.Generator, left: np.ndarray, right: np.ndarray, views: Views
) -> tuple[np.ndarray, np.ndarray]:
    """Light, sharpness and noise of both views: ``[H, W, 3]`` float32 of 0..255 to the same of 0..1."""
    share = 0.0 if rng.random() < views.same_light else rng.uniform()

    def either_way(size: Any, power: float) -> np.ndarray:
        return (views.light ** (power * rng.uniform(-1, 1, size))).astype(np.float32)

    common_gain, common_gamma = either_way(3, 1.0), float(either_way((), 1.0))
    spots = _spots(rng, left.shape[:2]) if rng.random() < views.spots else None
    quality = int(rng.integers(40, 96)) if rng.random() < views.jpeg else None
    changed = []
    for view, image in enumerate((left, right)):
        image = (image / 255).clip(0, 1)
        if spots is not None:
            image = image * spots[view]
        if rng.random() < views.blurred:
            image = cv2.GaussianBlur(image, (0, 0), 0.3 + rng.uniform(0, views.blur))
        gain = common_gain * either_way((), share) * either_way(3, share / 2)
        image = gain * image ** (common_gamma * float(either_way((), share)))
        image += np.float32(views.noise * rng.uniform() ** 2) * rng.standard_normal(image.shape, np.float32)
        image = image.clip(0, 1).astype(np.float32)
        if quality is not None:
            stored = cv2.imencode(".jpg", np.rint(255 * image).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
            image = np.asarray(cv2.imdecode(stored, cv2.IMREAD_COLOR), np.float32) / 255
        changed.append(image)
    return changed[0], changed[1]


def _spots(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Gain ``[2, H, W, 1]`` of either view by soft spots, bright and dark, some pixels apart in the two."""
    y, x = (axis.astype(np.float32) for axis in np.ogrid[: size[0], : size[1]])
    gain = np.ones((2, *size, 1), np.float32)
    for _ in range(int(rng.integers(1, 5))):
        middle, radius = rng.uniform(0, 1, 2) * size, np.exp(rng.uniform(np.log(4), np.log(0.5 * min(size)), 2))
        strength, apart = rng.uniform(-0.6, 0.8), rng.normal(0, 0.1) * size[1]
        for view in (0, 1):
            spot = np.exp(-(((y - middle[0]) / radius[0]) ** 2)) * np.exp(
                -(((x - middle[1] - view * apart) / radius[1]) ** 2)
            )
            gain[view, ..., 0] *= 1 + np.float32(strength) * spot
    return gain


def _rectification(rng: np.random.Generator, size: tuple[int, int], views: Views) -> np.ndarray:
    """[3, 3]: pixels of the right image as taken to those as it should be: rows off by a little, and by a little more at the edges."""
    shift, tilt = views.shift * rng.uniform(-1, 1), views.tilt * rng.uniform(-1, 1) / (size[1] / 2)
    return np.array([[1, 0, 0], [tilt, 1, shift - tilt * size[1] / 2], [0, 0, 1.0]])


class StereoData(SeededData):
    """Synthetic pairs for training and validation, each from a folder of photographs.

    Args:
        train_folder, val_folder: folders that are searched for photographs, including their subfolders.
        size: (height, width) of the views.
        batch_size: pairs per device and step.
        length: training pairs per epoch, over all devices.
        val_length: number of validation pairs, which are always the same.
        num_workers: worker processes that make pairs; the pairs do not depend on their number.
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
        """The pairs for training or validation."""
        folder, length, seed = (
            (self.train_folder, self.length, self.seed)
            if training
            else (self.val_folder, self.val_length, self.seed + 1)
        )
        return StereoDataset(list_photographs(folder), self.size, length, seed, self.scene, self.views)
