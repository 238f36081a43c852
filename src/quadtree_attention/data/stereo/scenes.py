"""Made-up scenes of two cameras: surfaces with an outline, a shape and a paint, and both views of them with exact disparity and occlusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from ...errors import check_fields

_SAME = 0.75  # pixels of disparity within which what the other view shows is the same surface
_SOLVE = 10  # steps to find the left place of a right pixel on a curved surface; bumps are so flat that each takes off two thirds of the error


@dataclass(frozen=True)
class Scene:
    """What is in front of the cameras.

    layers: fewest and most surfaces before the background. disparity: least and greatest, as a share of the width of the view; each scene draws a
    greatest one of its own, and small ones are more frequent. slant: change of disparity from a column to the next, either way. room: share of scenes
    with a floor, and perhaps walls beside, before the background. curved: share of surfaces that are. thin: share that are rods of a few pixels,
    one or a bunch of them. Paint: shares of surfaces with next to no texture (flat), with a small patch over and over (repeated), and with noise of
    several sizes (noisy); the others show a photograph. glossy: share that reflect another photograph from another depth. fine: share of scenes
    whose surfaces are all small.
    """

    layers: tuple[int, int] = (3, 14)
    disparity: tuple[float, float] = (0.004, 0.3)
    slant: float = 0.15
    room: float = 0.5
    curved: float = 0.4
    thin: float = 0.25
    flat: float = 0.16
    repeated: float = 0.12
    noisy: float = 0.08
    glossy: float = 0.1
    fine: float = 0.25

    def __post_init__(self) -> None:
        shares = dict.fromkeys(("room", "curved", "thin", "flat", "repeated", "noisy", "glossy", "fine"), (0, 1))
        check_fields(self, {"layers": (0, 1000), "disparity": (0.0001, 1), "slant": (0, 1), **shares})


@dataclass(frozen=True)
class Paint:
    """What a surface shows.

    photo: uint8 ``[h, w, 3]``. place: ``[2, 3]``, left pixels to pixels of the photo. tiled: whether it goes on by beginning again, or else
    mirrored. flat: 0..1, how much of the texture is gone. gloss: 0..1, how much of it is a reflection; reflection, depth: another photo, and by how
    many pixels of disparity it differs.
    """

    photo: np.ndarray
    place: np.ndarray
    tiled: bool = False
    flat: float = 0.0
    gloss: float = 0.0
    reflection: np.ndarray | None = None
    depth: float = 0.0


@dataclass(frozen=True)
class Surface:
    """Disparity at left pixel (x, y) is ``plane @ (x, y, 1)`` and what the bumps add.

    plane: ``[3]``. outlines: polygons ``[N, 2]`` in left pixels; None covers everything. bumps: ``[K, 5]``, middle x, y, width, height and
    disparity of bells.
    """

    plane: np.ndarray
    outlines: list[np.ndarray] | None
    paint: Paint
    bumps: np.ndarray = field(default_factory=lambda: np.zeros((0, 5)))

    def disparity(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """At left pixels, of any shape, in pixels."""
        a, b, c = self.plane
        found = a * x + b * y + c
        for middle_x, middle_y, width, height, high in self.bumps:
            found = found + high * np.exp(-(((x - middle_x) / width) ** 2) - ((y - middle_y) / height) ** 2)
        return found

    def left_place(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Left column of right pixels: the solution of ``left - disparity(left) = x``."""
        a, b, c = self.plane
        left = (x + b * y + c) / (1 - a)
        if len(self.bumps):
            for _ in range(_SOLVE):
                left = left - (left - x - self.disparity(left, y)) / (1 - a)
        return left


def random_surfaces(
    rng: np.random.Generator, photos: Sequence[np.ndarray], size: tuple[int, int], scene: Scene
) -> list[Surface]:
    """A background, perhaps a floor and walls, and surfaces before them, from far to near."""
    height, width = size
    low, high = (share * width for share in scene.disparity)
    high = float(np.exp(rng.uniform(np.log(max(low, 0.15 * high)), np.log(high))))
    background = float(np.exp(rng.uniform(np.log(low), np.log(low + 0.5 * (high - low)))))
    surfaces = _background(rng, photos, size, scene, background, high)
    side = min(size) * (0.4 if rng.random() < scene.fine else 1.0)
    count = int(rng.integers(scene.layers[0], scene.layers[1] + 1))
    depths = np.sort(np.exp(rng.uniform(np.log(background), np.log(high), count)))
    for depth in depths:
        slope = scene.slant * np.clip(rng.normal(0, 0.4, 2), -1, 1) * (rng.random() < 0.6)
        middle = rng.uniform(0, 1, 2) * [width + depth, height]
        outlines = [outline + middle for outline in _outlines(rng, side, rng.random() < scene.thin)]
        plane = np.array([*slope, depth - slope @ middle])
        bumps = _bumps(rng, middle, side, scene)
        surfaces.append(Surface(plane, outlines, random_paint(rng, photos, size, scene), bumps))
    return surfaces


def _background(
    rng: np.random.Generator,
    photos: Sequence[np.ndarray],
    size: tuple[int, int],
    scene: Scene,
    depth: float,
    high: float,
) -> list[Surface]:
    """A wall over all of the view; in a room, planes that rise before it: the nearest surface is what is seen."""
    height, width = size
    slope = 0.5 * scene.slant * np.clip(rng.normal(0, 0.4, 2), -1, 1)
    least = np.abs(slope) @ [width, height] / 2  # at a corner it is 0
    if depth < least:
        slope = slope * (depth / least)
    wall = np.array([*slope, depth - slope @ [width / 2, height / 2]])
    planes = [wall]
    if rng.random() < scene.room:
        horizon, rise = rng.uniform(0.2, 0.8) * height, (high - depth) / height * rng.uniform(0.5, 2.0)
        tilt = 0.1 * scene.slant * rng.normal()
        planes.append(wall + np.array([tilt, rise, -rise * horizon - tilt * width / 2]))
        for sign in (-1, 1):
            if rng.random() < 0.3:
                start, steep = (0.5 + sign * rng.uniform(0.1, 0.4)) * width, scene.slant * rng.uniform(0.2, 1.0)
                planes.append(wall + sign * np.array([steep, 0, -steep * start]))
    none = np.zeros((0, 5))
    return [
        Surface(
            plane,
            None,
            random_paint(rng, photos, size, scene),
            none if k else _bumps(rng, np.array([width / 2, height / 2]), min(size), scene),
        )
        for k, plane in enumerate(planes)
    ]


def _bumps(rng: np.random.Generator, middle: np.ndarray, side: float, scene: Scene) -> np.ndarray:
    """Bells whose steepest slope from column to column is 0.25."""
    if rng.random() >= scene.curved:
        return np.zeros((0, 5))
    bumps = []
    for _ in range(int(rng.integers(1, 3))):
        width, height = side * np.exp(rng.uniform(np.log(0.15), np.log(1.0), 2))
        steepest = 0.25 * rng.uniform(0.2, 1.0) / 2
        high = rng.choice([-1, 1], p=[0.3, 0.7]) * min(steepest * width / 0.86, 0.15 * side)
        bumps.append([*(middle + rng.normal(0, 0.3, 2) * side), width, height, high])
    return np.array(bumps)


def random_paint(rng: np.random.Generator, photos: Sequence[np.ndarray], size: tuple[int, int], scene: Scene) -> Paint:
    """A photograph at a random place, scale and turn; or one with little texture, a small patch of one over and over, or noise."""
    photo = photos[int(rng.integers(len(photos)))]
    kind, tiled, flat = rng.random(), False, 0.0
    scale, angle = np.exp(rng.uniform(np.log(0.4), np.log(1.6))), rng.normal(0, 0.4)
    if kind < scene.flat:
        flat = rng.uniform(0.9, 1.0)
    elif kind < scene.flat + scene.repeated:
        height, width = (int(min(np.exp(rng.uniform(np.log(6), np.log(64))), side)) for side in photo.shape[:2])
        top, left = (
            int(rng.integers(have - want + 1)) for have, want in zip(photo.shape, (height, width), strict=False)
        )
        photo, tiled, scale = photo[top : top + height, left : left + width], True, rng.uniform(0.5, 1.0)
        angle *= rng.random() < 0.5
    elif kind < scene.flat + scene.repeated + scene.noisy:
        photo, tiled = _noise(rng), True
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = linear @ np.diag([rng.choice([-1.0, 1.0]), 1.0])
    middle = rng.uniform(0, 1, 2) * photo.shape[1::-1]
    place = np.column_stack([linear, middle - linear @ (np.array(size[::-1]) / 2)])
    gloss, reflection, depth = 0.0, None, 0.0
    if rng.random() < scene.glossy:
        gloss, reflection = rng.uniform(0.1, 0.4), photos[int(rng.integers(len(photos)))]
        depth = rng.choice([-1, 1]) * rng.uniform(2, 16)
    return Paint(np.ascontiguousarray(photo), place, tiled, flat, gloss, reflection, depth)


def _noise(rng: np.random.Generator, side: int = 256) -> np.ndarray:
    """uint8 ``[256, 256, 3]``: noise of several sizes, as grass, cloth or gravel have it."""
    image = np.zeros((side, side, 3), np.float32)
    for octave in range(6):
        cells = side >> octave
        grain = rng.standard_normal((cells, cells, 1 if rng.random() < 0.6 else 3)).astype(np.float32)
        large = cv2.resize(grain, (side, side), interpolation=cv2.INTER_LINEAR).reshape(side, side, -1)
        image += np.float32(rng.uniform(0, 1)) * large
    image = rng.uniform(60, 190, 3) + rng.uniform(8, 60) * image / (image.std() + 1e-6)
    return np.clip(image, 0, 255).astype(np.uint8)


def _outlines(rng: np.random.Generator, side: float, thin: bool) -> list[np.ndarray]:
    """Polygons ``[N, 2]`` around the origin: a thing, or one or a bunch of rods."""
    turn = _turn(rng.uniform(0, 2 * np.pi))
    if thin:
        count = int(rng.integers(3, 12)) if rng.random() < 0.4 else 1
        half = rng.uniform(0.6, 3.0)
        fan = rng.random() < 0.5
        rods = []
        for n in range(count):
            length = side * rng.uniform(0.3, 1.5) / 2
            rod = np.array([[-length, -half], [length, -half], [length, half], [-length, half]])
            if fan:
                rods.append(rod @ _turn(np.pi * n / count).T @ turn.T)
            else:
                rods.append((rod + np.array([0, (n - count / 2) * half * rng.uniform(5, 9)])) @ turn.T)
        return rods
    radius, kind = side * rng.uniform(0.1, 0.7), rng.random()
    if kind < 0.25:  # something round
        angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        corners = np.stack([np.cos(angles), np.sin(angles)], 1) * radius * rng.uniform(0.4, 1, 2)
    elif kind < 0.5:  # a box or a book, often upright
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * radius * rng.uniform(0.3, 1, 2)
        if rng.random() < 0.5:
            turn = _turn(rng.normal(0, 0.05))
    elif kind < 0.75:  # a leaf, a coat, a doll: smooth, with bays
        angles = np.linspace(0, 2 * np.pi, 96, endpoint=False)
        waves = sum(rng.normal(0, 0.5 / n) * np.cos(n * angles + rng.uniform(0, 2 * np.pi)) for n in range(1, 8))
        corners = np.stack([np.cos(angles), np.sin(angles)], 1) * (radius * np.exp(0.5 * waves))[:, None]
    else:
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 10))))
        corners = np.stack([np.cos(angles), np.sin(angles)], 1) * radius * rng.uniform(0.5, 1.0, (len(angles), 1))
    return [corners @ turn.T]


def _turn(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


# ---- views ---------------------------------------------------------------------------------------


def render_pair(
    surfaces: Sequence[Surface], size: tuple[int, int], rectification: np.ndarray | None = None
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Images ``[H, W, 3]`` float32 of 0..255, disparity ``[H, W]`` float32 and occlusion ``[H, W]`` bool, of the left and the right view.

    rectification: [3, 3], pixels of the right image as taken to those of the right view as it should be. Disparity and occlusion are those
    of the right view as it should be.
    """
    views = [render_view(surfaces, size, right) for right in (False, True)]
    if rectification is not None:
        views[1] = (render_view(surfaces, size, True, rectification)[0], *views[1][1:])
    columns, rows = np.arange(size[1], dtype=np.float32), np.arange(size[0])[:, None]
    results = []
    for k, sign in ((0, -1), (1, 1)):
        (image, disparity, winner), (_, other_disparity, other_winner) = views[k], views[1 - k]
        place = columns + sign * disparity  # in the other view
        nearest = np.rint(place).astype(np.int64).clip(0, size[1] - 1)
        same = (other_winner[rows, nearest] == winner) | (np.abs(other_disparity[rows, nearest] - disparity) < _SAME)
        results.append((image, disparity, ~same | (place < 0) | (place > size[1] - 1)))
    return results


def render_view(
    surfaces: Sequence[Surface], size: tuple[int, int], right: bool, rectification: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image ``[H, W, 3]`` float32, disparity ``[H, W]`` float32, and the number ``[H, W]`` of the surface that is seen: the nearest one.

    An edge covers a part of its pixels: their colour is a mixture, their disparity is not.
    """
    rectification = np.eye(3) if rectification is None else rectification
    image = np.zeros((*size, 3), np.float32)
    nearest, winner = np.zeros(size, np.float32), np.full(size, -1, np.int64)
    for number, surface in enumerate(surfaces):
        box, hard, soft = _coverage(surface, size, right, rectification)
        if box is None:
            continue
        x, y = np.meshgrid(np.arange(box[1].start, box[1].stop), np.arange(box[0].start, box[0].stop))
        x, y, _ = np.einsum("ij,j...->i...", rectification, np.stack([x, y, np.ones_like(x)]).astype(np.float64))
        left = surface.left_place(x, y) if right else x
        disparity = surface.disparity(left, y).astype(np.float32)
        closer = (disparity > nearest[box]) | (winner[box] < 0)
        closer &= disparity >= 0
        cover = closer if soft is None else np.where(closer, soft, 0)
        if not cover.any():
            continue
        colors = _colors(surface.paint, left, y, right)
        image[box] += np.float32(cover)[..., None] * (colors - image[box])
        seen = closer if hard is None else closer & hard
        nearest[box][seen], winner[box][seen] = disparity[seen], number
    return image, nearest, winner


def _coverage(
    surface: Surface, size: tuple[int, int], right: bool, rectification: np.ndarray
) -> tuple[tuple[slice, slice] | None, np.ndarray | None, np.ndarray | None]:
    """Where a surface is in a view: rows and columns (None: nowhere), bool ``[h, w]`` in them, and the share 0..1 of each pixel (None: all)."""
    if surface.outlines is None:
        return (slice(0, size[0]), slice(0, size[1])), None, None
    back, polygons = np.linalg.inv(rectification), []
    for outline in surface.outlines:
        corners = outline
        if right and len(surface.bumps):  # straight edges are bent
            steps = np.linspace(0, 1, 24, endpoint=False)[None, :, None]
            corners = (outline[:, None] * (1 - steps) + np.roll(outline, -1, 0)[:, None] * steps).reshape(-1, 2)
        if right:
            x, y = corners.T
            corners = np.stack([x - surface.disparity(x, y), y], 1)
        polygons.append((corners @ back[:2, :2].T + back[:2, 2]).clip(-(2**14), 2**14))
    low = np.floor(np.min([p.min(0) for p in polygons], 0) - 1).clip(0, size[::-1]).astype(int)
    high = np.ceil(np.max([p.max(0) for p in polygons], 0) + 2).clip(0, size[::-1]).astype(int)
    if (high <= low).any():
        return None, None, None
    hard, soft = (np.zeros(tuple((high - low)[::-1]), np.uint8) for _ in range(2))
    for polygon in polygons:
        whole = [np.rint((polygon - low) * 256).astype(np.int32)]
        cv2.fillPoly(hard, whole, 1, shift=8)
        cv2.fillPoly(soft, whole, 255, cv2.LINE_AA, shift=8)
    return (slice(low[1], high[1]), slice(low[0], high[0])), hard.view(bool), soft / np.float32(255)


def _colors(paint: Paint, left: np.ndarray, y: np.ndarray, right: bool) -> np.ndarray:
    """Colours ``[h, w, 3]`` float32 at left places."""

    def of(photo: np.ndarray, x: np.ndarray, tiled: bool) -> np.ndarray:
        (a, b, c), (d, e, f) = paint.place
        columns, rows = (a * x + b * y + c).astype(np.float32), (d * x + e * y + f).astype(np.float32)
        border = cv2.BORDER_WRAP if tiled else cv2.BORDER_REFLECT_101
        return cv2.remap(photo, columns, rows, cv2.INTER_LINEAR, borderMode=border).astype(np.float32)

    colors = of(paint.photo, left, paint.tiled)
    if paint.flat:
        plain = paint.photo[paint.photo.shape[0] // 2, paint.photo.shape[1] // 2].astype(np.float32)
        colors = paint.flat * plain + (1 - paint.flat) * colors
    if paint.reflection is not None:
        there = of(paint.reflection, left + (paint.depth if right else 0.0), False)
        colors = paint.gloss * there + (1 - paint.gloss) * colors
    return colors
