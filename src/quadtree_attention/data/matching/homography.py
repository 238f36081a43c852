"""Pairs of views of photographs under random homographies, with everything that makes matching hard.

Sample n of a seed is always the same, whatever came before it and whichever worker makes it: a resumed training gets the
same samples as an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from ...errors import InputError, check_fields, check_range
from ...files import list_photographs
from ..appearance import Appearance, change_appearance, occlude
from ..loading import SeededData, SeededDataset, check_size
from ..photos import Photographs, read_gray
from ..warp import shift_matrix, warped_view

_TRIES = 20  # random warps before giving up


@dataclass(frozen=True)
class Warp:
    """How far apart the two views may be, at difficulty 1.

    rotation: in the image plane, degrees either way. scale: ratio of sizes, either way. tilt: foreshortening in any one
    direction, a ratio. perspective: shift of each corner, as a share of the sides. translation: likewise, of the whole.
    min_overlap: share of either image that the other shows at least; but for a share ``careless`` of all pairs it may be
    anything. background: share of pairs with another photograph around the first, which else goes on mirrored.
    """

    rotation: float = 45.0
    scale: float = 2.0
    tilt: float = 2.0
    perspective: float = 0.2
    translation: float = 0.25
    min_overlap: float = 0.3
    careless: float = 0.03
    background: float = 0.5

    def __post_init__(self) -> None:
        ratios = dict.fromkeys(("scale", "tilt"), (1, 100))
        shares = dict.fromkeys(("perspective", "min_overlap", "careless", "background"), (0, 1))
        check_fields(self, {"rotation": (0, 180), "translation": (0, 10)} | ratios | shares)


class HomographyDataset(SeededDataset):
    """Random pairs of views; sample n depends on the seed and n alone.

    Args:
        photos: paths of photographs. Broken files are skipped with a warning.
        size: (height, width) of both views.
        length: samples per epoch. Larger indices are valid too: they belong to later epochs.
        seed: of all random choices.
        warp, appearance: how hard the pairs are, at difficulty 1.
        collage: share of pairs that show a collage of parts of 4 or 9 photographs in place of one.
        difficulty: 0 to 1, scales all strengths; a pair (first, last) rises evenly over the first ``ramp`` samples.

    A sample is a dict of ``supervision`` "homography";
    ``image0``, ``image1`` float32 ``[1, H, W]`` in 0..1; ``homography`` float32 ``[3, 3]``, pixels
    of image 0 to pixels of image 1; ``visible0``, ``visible1`` bool ``[H, W]``, False under an occluder and outside of
    the photograph.
    """

    def __init__(
        self,
        photos: Sequence[str | Path],
        size: tuple[int, int] = (256, 256),
        length: int = 1000,
        seed: int = 0,
        warp: Warp | None = None,
        appearance: Appearance | None = None,
        collage: float = 0.5,
        difficulty: float | tuple[float, float] = 1.0,
        ramp: int = 0,
    ) -> None:
        super().__init__(length, seed)
        self.photos = Photographs(photos)
        check_size(size)
        check_range("collage", collage, 0, 1)
        check_range("ramp", ramp, 0)
        self.size = (int(size[0]), int(size[1]))
        self.warp = warp or Warp()
        self.appearance = appearance or Appearance()
        self.collage = collage
        first, last = (difficulty, difficulty) if isinstance(difficulty, (int, float)) else difficulty
        if not (0 <= first <= 1 and 0 <= last <= 1):
            raise InputError(f"difficulty is {difficulty}, expected 0 to 1, or two such numbers")
        self.difficulty = (float(first), float(last))
        self.ramp = ramp

    def sample(self, index: int) -> dict[str, Any]:
        """Pair ``index``."""
        rng = np.random.default_rng([self.seed, index])
        difficulty = self._difficulty(index)
        photo = self._collage(rng) if rng.random() < self.collage else self._photograph(rng)
        views = random_views(rng, photo.shape, self.size, self.warp, difficulty)
        homography = np.linalg.inv(views[1]) @ views[0]
        homography /= homography[2, 2]
        sample: dict[str, Any] = {"supervision": "homography"}
        sample["homography"] = torch.from_numpy(homography.astype(np.float32))
        behind = rng.random() < self.warp.background
        counts = self.appearance.occluder_counts(rng, difficulty)
        if behind or any(counts):
            other = self._photograph(rng)
        for k, (view, count) in enumerate(zip(views, counts, strict=True)):
            image = warped_view(photo, view, self.size, cv2.BORDER_REFLECT_101)
            visible = cv2.warpPerspective(
                np.ones_like(photo), view, self.size[::-1], flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
            ).astype(bool)
            if behind and not visible.all():
                image = np.where(visible, image, _random_crop(rng, other, self.size))
            if count:
                occlude(rng, image, visible, _random_crop(rng, other, self.size), count, self.appearance)
            image = change_appearance(rng, image, self.appearance, difficulty)
            sample[f"image{k}"] = torch.from_numpy(image)[None]
            sample[f"visible{k}"] = torch.from_numpy(visible)
        return sample

    def _difficulty(self, index: int) -> float:
        first, last = self.difficulty
        return first + (last - first) * (min(index / self.ramp, 1.0) if self.ramp else 1.0)

    def _collage(self, rng: np.random.Generator) -> np.ndarray:
        """Square parts of photographs side by side, ``[S, S]`` uint8 with S about twice the longer side of a view."""
        count = int(rng.integers(2, 4))
        side = 2 * max(self.size) // count
        parts = [_random_crop(rng, self._photograph(rng, side), (side, side)) for _ in range(count**2)]
        return np.block([parts[row * count : (row + 1) * count] for row in range(count)])

    def _photograph(self, rng: np.random.Generator, short_side: int | None = None) -> np.ndarray:
        """A random photograph ``[H, W]`` uint8; see `read_gray` for ``short_side``."""
        return self.photos.draw(rng, lambda path: read_gray(path, short_side or 2 * max(self.size)))


def random_views(
    rng: np.random.Generator, photo: tuple[int, int], size: tuple[int, int], warp: Warp, difficulty: float = 1.0
) -> list[np.ndarray]:
    """Two homographies [3, 3] float64 from pixels of a view to pixels of the photograph.

    One view, either of them, is a plain rectangle inside the photograph, at times mirrored; the other is a projective
    warp of it.
    """
    height, width = size
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    relative, zoom = _random_homography(rng, size, warp, difficulty)
    fits = min(photo[0] / height, photo[1] / width)
    # Photograph pixels a view pixel. A view that shows more of the plane than the first one is met halfway.
    largest = fits * min(1.0, zoom) ** 0.5
    step = np.exp(rng.uniform(np.log(min(largest, max(0.8, largest / 2))), np.log(largest)))
    span = (photo[1] - step * width, photo[0] - step * height)
    place = [(side - 1) / 2 + rng.uniform(-0.5, 0.5) * room for side, room in zip(photo[::-1], span, strict=True)]
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    first = shift_matrix(place) @ np.diag([mirror * step, step, 1.0]) @ shift_matrix(-centre)
    views = [first, first @ np.linalg.inv(relative)]
    return views if rng.random() < 0.5 else views[::-1]


def _random_homography(
    rng: np.random.Generator, size: tuple[int, int], warp: Warp, difficulty: float
) -> tuple[np.ndarray, float]:
    """A homography [3, 3] between two views, and its scale; milder ones are tried until enough of each is in the other."""
    height, width = size
    sides = np.array([width, height], np.float64)
    corners = np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]], np.float64)
    centre = corners.mean(0)
    needed = 0.02 if rng.random() < warp.careless else warp.min_overlap
    for attempt in range(_TRIES):
        strength = difficulty * (1 - attempt / _TRIES)
        zoom = warp.scale ** (strength * _bell(rng))
        stretch = warp.tilt ** (strength * abs(_bell(rng)) / 2)
        direction = _rotation(rng.uniform(0, np.pi))
        linear = _rotation(np.deg2rad(warp.rotation) * strength * _bell(rng))
        linear = linear @ direction @ np.diag([zoom * stretch, zoom / stretch, 1.0]) @ direction.T
        moved = corners + strength * warp.perspective * rng.uniform(-0.5, 0.5, (4, 2)) * sides
        perspective = cv2.getPerspectiveTransform(corners.astype(np.float32), moved.astype(np.float32))
        shift = strength * warp.translation * np.array([_bell(rng), _bell(rng)]) * sides
        homography = shift_matrix(centre + shift) @ linear @ shift_matrix(-centre) @ perspective
        if _overlap(homography, size) >= needed:
            return homography / homography[2, 2], zoom
    return np.eye(3), 1.0


def _overlap(homography: np.ndarray, size: tuple[int, int]) -> float:
    """The share of either image that the other one shows, the smaller; 0 where a view comes close to its horizon."""
    height, width = size
    x, y = np.meshgrid(np.linspace(0, width - 1, 9), np.linspace(0, height - 1, 9))
    points = np.stack([x.ravel(), y.ravel(), np.ones(x.size)])
    shares = []
    for matrix in (homography, np.linalg.inv(homography)):
        across, down, w = matrix @ points
        nearness = w / w[w.size // 2]  # of each point, against that of the centre
        if nearness.min() < 0.3:
            return 0.0
        across, down = across / w, down / w
        shares.append(np.mean((across >= 0) & (across <= width - 1) & (down >= 0) & (down <= height - 1)))
    return float(min(shares))


def _bell(rng: np.random.Generator) -> float:
    """Draw a number in -1..1 that is mostly small, because most real pairs are easy."""
    return float(np.clip(rng.normal(0, 0.5), -1, 1))


def _rotation(angle: float) -> np.ndarray:
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])


def _random_crop(rng: np.random.Generator, photo: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A random part of a photograph ``[H, W]``, as large as fits or down to half of that."""
    share = rng.uniform(0.5, 1.0) * min(photo.shape[0] / size[0], photo.shape[1] / size[1])
    height, width = (max(1, int(share * side)) for side in size)
    top, left = rng.integers(photo.shape[0] - height + 1), rng.integers(photo.shape[1] - width + 1)
    return cv2.resize(photo[top : top + height, left : left + width], size[::-1], interpolation=cv2.INTER_LINEAR)


class HomographyData(SeededData):
    """Synthetic pairs for training and validation, each from a folder of photographs.

    Args:
        train_folder, val_folder: folders that are searched for photographs, including their subfolders.
        size: (height, width) of the views.
        batch_size: pairs per device and step.
        length: training pairs per epoch, over all devices.
        val_length: number of validation pairs, which are always the same.
        num_workers: worker processes that make pairs; the pairs do not depend on their number.
        seed, warp, appearance, collage, difficulty, ramp: see `HomographyDataset`; validation is at the last difficulty.
    """

    def __init__(
        self,
        train_folder: str,
        val_folder: str,
        size: tuple[int, int] = (256, 256),
        batch_size: int = 8,
        length: int = 10_000,
        val_length: int = 200,
        num_workers: int = 2,
        seed: int = 0,
        warp: Warp | None = None,
        appearance: Appearance | None = None,
        collage: float = 0.5,
        difficulty: tuple[float, float] = (1.0, 1.0),
        ramp: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers)
        self.train_folder, self.val_folder, self.size = train_folder, val_folder, size
        self.length, self.val_length, self.seed = length, val_length, seed
        self.warp, self.appearance, self.collage = warp, appearance, collage
        self.difficulty, self.ramp = difficulty, ramp

    def dataset(self, training: bool) -> HomographyDataset:
        """The pairs for training or validation."""
        return HomographyDataset(
            list_photographs(self.train_folder if training else self.val_folder),
            self.size,
            self.length if training else self.val_length,
            self.seed if training else self.seed + 1,
            self.warp,
            self.appearance,
            self.collage,
            self.difficulty if training else self.difficulty[1],
            self.ramp if training else 0,
        )
