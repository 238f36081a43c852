"""A small renderer: textured rectangles in space, seen by pinhole cameras, with exact depth.

World: x and y level, z up, metres. Camera: x right, y down, z forward; poses take points of the world to points of the camera.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from ...errors import InputError

_NEAR = 1e-3  # metres from the camera: nearer points are not seen


class Rectangle(NamedTuple):
    """A textured parallelogram: ``corner + a * across + b * down`` with a and b in 0..1, seen from both sides.

    corner, across, down: ``[3]``, metres. texture: ``[h, w]`` uint8, its left edge at a = 0, its top edge at b = 0.
    light: factor on the texture.
    """

    corner: np.ndarray
    across: np.ndarray
    down: np.ndarray
    texture: np.ndarray
    light: float = 1.0


class Rendering(NamedTuple):
    """image: ``[H, W]`` uint8. depth: ``[H, W]`` float32, metres along the optical axis, 0 where nothing is."""

    image: np.ndarray
    depth: np.ndarray


class Scene:
    """A scene of rectangles.

    A pixel's ray meets a rectangle at ``(a, b, 1) = z * M^-1 K^-1 (x, y, 1)`` with ``M = [across, down, corner]`` in the camera's
    coordinates: the third entry of the product without z is 1 / z, and affine in x and y.

    Args:
        rectangles: at least one.
        sky: grey value where nothing is.
    """

    def __init__(self, rectangles: Sequence[Rectangle], sky: int = 200) -> None:
        if not rectangles:
            raise InputError("got no rectangles, expected at least one")
        self.rectangles = tuple(rectangles)
        self.sky = sky
        self._frames = np.stack([np.stack([r.across, r.down, r.corner], 1) for r in rectangles]).astype(np.float64)
        self._pyramids = _Pyramids([r.texture for r in rectangles], [r.light for r in rectangles])

    def render(self, K: np.ndarray, pose: np.ndarray, size: tuple[int, int]) -> Rendering:
        """Render the view of a camera.

        Args:
            K: intrinsics ``[3, 3]`` in pixels, centres at integers.
            pose: ``[4, 4]``, world to camera.
            size: (height, width).
        """
        inverse, number, matrices = self._cast(K, pose, size)
        y, x = np.nonzero(number >= 0)
        which = number[y, x]
        image = np.full(size, self.sky, np.uint8)
        image[y, x] = self._pyramids.sample(which, matrices[which], x, y)
        seen = number >= 0
        return Rendering(image, np.where(seen, 1 / np.where(seen, inverse, 1), 0).astype(np.float32))

    def depth(self, K: np.ndarray, pose: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """The depth of `render` alone, ``[H, W]`` float64."""
        inverse, number, _ = self._cast(K, pose, size)
        return np.where(number >= 0, 1 / np.where(number >= 0, inverse, 1), 0)

    def _cast(
        self, K: np.ndarray, pose: np.ndarray, size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Inverse depth ``[H, W]``, number of the rectangle seen ``[H, W]`` or -1, and the matrices ``[N, 3, 3]`` from pixels to (a, b, 1) / z."""
        frames = pose[:3, :3] @ self._frames
        frames[:, :, 2] += pose[:3, 3]
        flat = np.abs(np.linalg.det(frames)) < 1e-12  # the camera lies in their plane
        frames[flat] = np.eye(3)
        matrices = np.linalg.inv(frames) @ np.linalg.inv(K)
        nearest, number = np.zeros(size), np.full(size, -1)
        for k, (top, bottom, left, right) in enumerate(_boxes(K @ frames, size)):
            if flat[k] or top >= bottom or left >= right:
                continue
            x, y = np.arange(left, right), np.arange(top, bottom)[:, None]
            a, b, inverse = (row[0] * x + row[1] * y + row[2] for row in matrices[k])
            part, numbers = nearest[top:bottom, left:right], number[top:bottom, left:right]
            seen = (a >= 0) & (b >= 0) & (a <= inverse) & (b <= inverse) & (inverse > part) & (inverse < 1 / _NEAR)
            np.copyto(part, inverse, where=seen)
            numbers[seen] = k
        return nearest, number, matrices


def _boxes(projections: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Rows (top, bottom, left, right) of pixels that a rectangle can cover; all of the image if it reaches behind the camera."""
    corners = projections @ np.array([[0, 1, 0, 1], [0, 0, 1, 1], [1, 1, 1, 1]])  # [N, 3, 4]
    z = corners[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        places = corners[:, 1::-1] / z[:, None]  # y, x
    low, high = places.min(2), places.max(2)
    behind = (z < _NEAR).any(1)
    limits = np.array(size)
    low, high = np.where(behind[:, None], 0, low), np.where(behind[:, None], limits, high)
    low, high = np.clip(np.floor(low), 0, limits), np.clip(np.ceil(high) + 1, 0, limits)
    gone = (z < _NEAR).all(1)
    high[gone] = 0
    return np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], 1).astype(int)


class _Pyramids:
    """Textures at all sizes, one after another in one array, so that the pixels of an image are read at once."""

    def __init__(self, textures: Sequence[np.ndarray], lights: Sequence[float]) -> None:
        levels, starts, shapes = [], [], []
        start = 0
        for texture, light in zip(textures, lights, strict=True):
            level = texture.astype(np.float32) * np.float32(light)
            of_texture = []
            while True:
                levels.append(level.ravel())
                of_texture.append((start, *level.shape))
                start += level.size
                if min(level.shape) < 4:
                    break
                level = cv2.resize(level, (level.shape[1] // 2, level.shape[0] // 2), interpolation=cv2.INTER_AREA)
            starts.append([entry[0] for entry in of_texture])
            shapes.append([entry[1:] for entry in of_texture])
        self.last = np.array([len(entry) - 1 for entry in starts])
        most = self.last.max() + 1
        self.start = np.array([entry + [0] * (most - len(entry)) for entry in starts], np.int32)
        self.shape = np.array([entry + [(1, 1)] * (most - len(entry)) for entry in shapes], np.int32)  # [N, levels, 2]
        self.texels = np.concatenate(levels)

    def sample(self, which: np.ndarray, matrices: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Grey values ``[M]`` uint8 of textures ``which`` at pixels (x, y), by matrices ``[M, 3, 3]`` as in `Scene._cast`."""
        a, b, inverse = (row[:, 0] * x + row[:, 1] * y + row[:, 2] for row in matrices.transpose(1, 0, 2))
        a, b = a / inverse, b / inverse
        height, width = self.shape[which, 0].T
        # Texels a pixel: root mean square of the steps to the right and down.
        across = (matrices[:, 0, :2] - a[:, None] * matrices[:, 2, :2]) * (width / inverse)[:, None]
        down = (matrices[:, 1, :2] - b[:, None] * matrices[:, 2, :2]) * (height / inverse)[:, None]
        step = np.sqrt(((across**2).sum(1) + (down**2).sum(1)) / 2)
        level = np.clip(np.log2(np.maximum(step, 1e-9)), 0, self.last[which])
        below = np.minimum(level.astype(int), self.last[which])
        share = (level - below).astype(np.float32)
        values = self._bilinear(which, below, a, b)
        mixed = np.flatnonzero(share)
        coarser = self._bilinear(which[mixed], below[mixed] + 1, a[mixed], b[mixed])
        values[mixed] += share[mixed] * (coarser - values[mixed])
        return np.clip(np.rint(values), 0, 255).astype(np.uint8)

    def _bilinear(self, which: np.ndarray, level: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        height, width = self.shape[which, level].T
        x, y = np.clip(a * width - 0.5, 0, width - 1), np.clip(b * height - 0.5, 0, height - 1)
        left, top = x.astype(np.int32), y.astype(np.int32)
        x, y = (x - left).astype(np.float32), (y - top).astype(np.float32)
        upper = self.start[which, level] + top * width + left
        lower = upper + width * (top < height - 1)
        right = left < width - 1
        upper_row = self.texels[upper] * (1 - x) + self.texels[upper + right] * x
        lower_row = self.texels[lower] * (1 - x) + self.texels[lower + right] * x
        return upper_row * (1 - y) + lower_row * y


def look_at(position: np.ndarray, target: np.ndarray, roll: float = 0.0) -> np.ndarray:
    """World to camera ``[4, 4]`` of a camera that looks at a target, upright but for ``roll`` radians; never straight up or down."""
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= max(np.linalg.norm(right), 1e-9)
    down = np.cross(forward, right)
    cosine, sine = np.cos(roll), np.sin(roll)
    R = np.stack([cosine * right + sine * down, cosine * down - sine * right, forward])
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = R, -R @ position
    return pose


def overlap(depth0: np.ndarray, depth1: np.ndarray, K: np.ndarray, T_0to1: np.ndarray) -> float:
    """The share of the pixels of either image that the other one shows too, the smaller of both; depths ``[H, W]``, intrinsics of both."""
    T_1to0 = np.linalg.inv(T_0to1)
    return min(_shown(depth0, depth1, K, T_0to1), _shown(depth1, depth0, K, T_1to0))


def _shown(depth0: np.ndarray, depth1: np.ndarray, K: np.ndarray, T: np.ndarray) -> float:
    height, width = depth0.shape
    y, x = np.nonzero(depth0 > 0)
    points = np.linalg.inv(K) @ (np.stack([x, y, np.ones_like(x)]) * depth0[y, x])
    there = K @ (T[:3, :3] @ points + T[:3, 3:])
    z = there[2]
    ahead = z > _NEAR
    x, y = np.rint(there[:2, ahead] / z[ahead]).astype(int)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    known = depth1[y[inside], x[inside]]
    agree = np.abs(known - z[ahead][inside]) < 0.1 * known
    return float(agree.sum() / depth0.size)
