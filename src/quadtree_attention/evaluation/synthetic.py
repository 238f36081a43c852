"""Pairs with known geometry from photographs without any: the check set of the homography protocol."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.images import read_image, resize_longest
from ..data.matching.pairs import HomographyPair
from ..extras import require
from ..files import list_photographs


@dataclass(frozen=True)
class SyntheticHomographies:
    """Views of photographs under random homographies, with changed light and noise; the same for the same seed.

    folder: photographs, taken in the order of their names, as often as needed. Of each pair one image is the
    photograph, shrunk to max_size, and the other a view of a random quadrilateral inside it (40 to 100 % of its sides,
    turned up to 30 degrees, corners moved by up to 15 %), so that nothing outside of the photograph is ever seen; every
    second pair is turned around.
    """

    folder: str | Path
    length: int = 200
    seed: int = 0
    max_size: int = 640

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[HomographyPair]:
        photos = list_photographs(self.folder)
        for index in range(self.length):
            yield self._pair(index, photos[index % len(photos)])

    def _pair(self, index: int, photo: Path) -> HomographyPair:
        cv2 = require("cv2", "vision")
        rng = np.random.default_rng([self.seed, index])
        image, _ = resize_longest(read_image(photo), self.max_size)
        height, width = image.shape[:2]
        frame = np.array([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]], dtype=np.float64)
        H = _view(frame, rng, cv2)
        view = cv2.warpPerspective(image, H, (width, height))  # enlarges, so bilinear will do
        light = 255 * (view / 255.0) ** rng.uniform(0.7, 1.4) * rng.uniform(0.7, 1.3)
        noise = rng.normal(0, rng.uniform(0, 6), view.shape)
        view = np.clip(np.rint(light + noise), 0, 255).astype(np.uint8)
        if index % 2:
            image, view, H = view, image, np.linalg.inv(H)
        return HomographyPair(name=f"{index:04d} {photo.name}", image0=image, image1=view, homography=H / H[2, 2])


def _view(frame: np.ndarray, rng: np.random.Generator, cv2: Any) -> np.ndarray:
    """A homography [3, 3] that maps a random quadrilateral inside the frame [4, 2] onto the whole frame."""
    size = frame[2]
    for _ in range(100):
        corners = (frame / size - 0.5 + rng.uniform(-0.15, 0.15, (4, 2))) * size * rng.uniform(0.4, 1.0)
        angle = np.deg2rad(rng.uniform(-30, 30))
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        corners = corners @ turn.T
        low, high = -corners.min(axis=0), size - corners.max(axis=0)
        if (low <= high).all():
            quad = corners + rng.uniform(low, high)
            return cv2.getPerspectiveTransform(quad.astype(np.float32), frame.astype(np.float32))
    return np.eye(3)  # a photograph a few pixels wide
