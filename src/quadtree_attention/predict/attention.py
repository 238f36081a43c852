"""Where a point of an image looks: the patches that quadtree attention compares it with and keeps, level by level, in pixels of the photographs.

The same networks, prepared images and recorded calls for matchers, stereo networks, and the backbones of classifiers, detectors and segmenters;
`nn.record_attention` does it for any other network.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.images import read_image, resize_longest
from ..data.recognition.masks import preprocess
from ..errors import InputError
from ..files import atomic_write, checked_suffix, write_text
from ..formats import ATTENTION_SUFFIXES
from ..models.loftr.model import STRIDE
from ..nn import AttentionCall, AttentionPath, record_attention
from .alignment import whole_view
from .classification import Classifier
from .detection import Detector
from .matching import Matcher
from .segmentation import Segmenter
from .stereo import StereoMatcher

FIRST_STRIDE = 4  # pixels a token of a backbone's first stage; each further stage has twice as many


@dataclass(frozen=True)
class Frame:
    """How the finest cells of a grid lie over an image: the left upper corner of the first one, and the size of each, in pixels of the image as
    given, whose upper left corner is (0, 0); row: of the cells, where the grid is a single row.
    """

    left: float
    top: float
    width: float
    height: float
    row: int | None = None

    def cell(self, x: float, y: float) -> tuple[int, int]:
        """Row and column of the cell at a pixel, whose centre is at integers."""
        return math.floor((y + 0.5 - self.top) / self.height), math.floor((x + 0.5 - self.left) / self.width)

    def boxes(self, cells: np.ndarray, size: int) -> np.ndarray:
        """Boxes ``[N, 4]`` (x0, y0, x1, y1) of cells ``[N, axes]`` of a level whose cells have a side of ``size`` finest ones."""
        columns = cells[:, -1] * float(size)
        rows, high = (
            (cells[:, 0] * float(size), float(size)) if self.row is None else (np.full(len(cells), self.row), 1.0)
        )
        x0, y0 = self.left + columns * self.width, self.top + rows * self.height
        return np.stack([x0, y0, x0 + size * self.width, y0 + high * self.height], 1).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Patches:
    """What a point is compared with at one level, as boxes (x0, y0, x1, y1) in pixels of the image as given, cut at its edges.

    query: float32 ``[4]``, the point's own patch in A. boxes: float32 ``[N, 4]``, in B (or in A itself). scores: float32 ``[N]``, their shares of the
    attention at this level. kept: float32 ``[N]``, 1 for patches that the next level looks into and 0 for others; of several heads the share of them.
    weight: of the level; grid: patches there are, (rows, columns).
    """

    query: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    kept: np.ndarray
    weight: float
    grid: tuple[int, int]

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True, eq=False)
class PointAttention:
    """Where one point looks.

    point: (x, y) in A. layer: its number, from 1, and name of the layer; cross: whether it looks into B. head: its number from 1, None for the mean
    of all. levels: `Patches`, coarse to fine. path: the same as cells and tensors, of all heads. layer_cost: scores that the layer computed for all
    points and heads of A, and that dense attention would have computed.
    """

    point: tuple[float, float]
    layer: int
    name: str
    cross: bool
    head: int | None
    levels: tuple[Patches, ...]
    path: AttentionPath
    layer_cost: tuple[int, int]

    @property
    def cost(self) -> str:
        """What the point and its layer cost, in words."""
        computed, dense = self.layer_cost
        return (
            f"this point: {round(self.path.computed):,} scores a head, of {self.path.dense:,} with dense attention; "
            f"the whole layer: {_short(computed)}, of {_short(dense)} ({100 * computed / dense:.1f} %)"
        )

    @property
    def heads(self) -> str:
        """Which heads are shown, in words."""
        count = self.path.heads
        return f"mean of {count} heads" if self.head is None and count > 1 else f"head {self.head or 1} of {count}"

    def save(self, path: str | Path) -> None:
        """Write to .json or .npz; the file is whole or not there. See docs/files.md for what is in it."""
        if checked_suffix(path, ATTENTION_SUFFIXES) == ".json":
            write_text(path, json.dumps(self._data()) + "\n")
            return
        arrays: dict[str, Any] = {
            "point": np.array(self.point, np.float32),
            "layer": np.int64(self.layer),
            "head": np.int64(self.head or 0),
            "cost": np.array([round(self.path.computed), self.path.dense, *self.layer_cost], np.int64),
        }
        for number, level in enumerate(self.levels, 1):
            for name in ("query", "boxes", "scores", "kept", "grid", "weight"):
                arrays[f"level{number}_{name}"] = np.asarray(getattr(level, name))
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)

    def _data(self) -> dict[str, Any]:
        return {
            "point": list(self.point),
            "layer": self.layer,
            "name": self.name,
            "looks_into": "B" if self.cross else "A",
            "head": self.head,
            "variant": self.path.variant,
            "computed": round(self.path.computed),
            "dense": self.path.dense,
            "layer_computed": self.layer_cost[0],
            "layer_dense": self.layer_cost[1],
            "levels": [
                {
                    "grid": list(level.grid),
                    "weight": round(level.weight, 6),
                    "query": _rounded(level.query),
                    "patches": [
                        {"box": _rounded(box), "score": round(float(score), 7), "kept": round(float(kept), 4)}
                        for box, score, kept in zip(level.boxes, level.scores, level.kept, strict=True)
                    ],
                }
                for level in self.levels
            ],
        }


@dataclass(frozen=True, eq=False)
class _Layer:
    """A layer of a network, whose queries are in A: how it is called, the call that holds a row, and how the keys' cells lie."""

    name: str
    cross: bool
    calls: list[AttentionCall]
    query_frame: Frame
    key_frame: Frame


@dataclass(frozen=True, eq=False)
class ImageAttention:
    """The attention of a network on a photograph, or on a pair, ready to be asked for any point: no point runs the network again.

    sizes: (height, width) of A, and of B if there is one.
    """

    sizes: tuple[tuple[int, int], ...]
    _layers: list[_Layer]

    @property
    def layers(self) -> list[str]:
        """Names of the layers, in order."""
        return [layer.name for layer in self._layers]

    @property
    def heads(self) -> list[int]:
        """Number of heads of each layer."""
        return [layer.calls[0].queries[0].shape[-2] for layer in self._layers]

    @property
    def default_layer(self) -> int:
        """Number, from 1, of the layer that shows most: the last one that looks into B; without B, the last of those with most levels."""
        cross = [n for n, layer in enumerate(self._layers, 1) if layer.cross]
        if cross:
            return cross[-1]
        deepest = max(len(layer.calls[0].queries) for layer in self._layers)
        return [n for n, layer in enumerate(self._layers, 1) if len(layer.calls[0].queries) == deepest][-1]

    def at(self, x: float, y: float, *, layer: int | None = None, head: int | None = None) -> PointAttention:
        """Where a point of A looks.

        Args:
            x, y: in pixels of A as given, pixel centres at integers.
            layer: its number, from 1; None: `default_layer`.
            head: its number, from 1; None: the mean of all.

        Raises:
            ValueError: a point that the network does not see, a layer or head that is not there.
        """
        height, width = self.sizes[0]
        if not (-0.5 <= x < width - 0.5 and -0.5 <= y < height - 0.5):
            raise InputError(f"the point is {x:g},{y:g}, expected x from 0 to {width - 1} and y from 0 to {height - 1}")
        number = self.default_layer if layer is None else layer
        if not 1 <= number <= len(self._layers):
            names = ", ".join(f"{n} {name}" for n, name in enumerate(self.layers, 1))
            raise InputError(f"layer is {number}, expected 1 to {len(self._layers)}: {names}")
        chosen = self._layers[number - 1]
        heads = self.heads[number - 1]
        if head is not None and not 1 <= head <= heads:
            raise InputError(f"head is {head}, expected 1 to {heads}, or none for their mean")
        row, column = chosen.query_frame.cell(x, y)
        call, batch, cell = _find(chosen, row, column)
        if cell is None:
            left, top = chosen.query_frame.left, chosen.query_frame.top
            rows, columns = chosen.calls[0].query_grid
            right, bottom = left + columns * chosen.query_frame.width, top + rows * chosen.query_frame.height
            raise InputError(
                f"the point is {x:g},{y:g}, which the network does not see: it looks at x from {left:.0f} to {right - 1:.0f} and y from {top:.0f} "
                f"to {bottom - 1:.0f}"
            )
        path = call.path(cell, batch=batch)
        key_size = self.sizes[-1] if chosen.cross else self.sizes[0]
        in_row = {} if call.queries[0].dim() > 4 else {"row": row}
        frames = [Frame(**{**frame.__dict__, **in_row}) for frame in (chosen.query_frame, chosen.key_frame)]
        levels = []
        for depth, level in enumerate(path.levels):
            side = 2 ** (len(path.levels) - 1 - depth)
            scores, kept = (
                level.score_map(None if head is None else head - 1),
                level.kept_map(None if head is None else head - 1),
            )
            cells = (~scores.isnan()).nonzero()
            places = tuple(cells.T)
            levels.append(
                Patches(
                    _cut(frames[0].boxes(np.array([level.query]), side), self.sizes[0])[0],
                    _cut(frames[1].boxes(cells.numpy(), side), key_size),
                    scores[places].numpy(),
                    kept[places].numpy(),
                    level.weight,
                    level.key_grid if len(level.key_grid) == 2 else (1, level.key_grid[0]),  # type: ignore[arg-type]  # two of them
                )
            )
        cost = np.sum([one.cost() for one in chosen.calls], 0).tolist()
        return PointAttention(
            (float(x), float(y)), number, chosen.name, chosen.cross, head, tuple(levels), path, (cost[0], cost[1])
        )


def image_attention(
    predictor: Matcher | StereoMatcher | Classifier | Detector | Segmenter,
    image0: Any,
    image1: Any = None,
    *,
    max_size: int | None = None,
) -> ImageAttention:
    """Run a network on a photograph, or a pair, and keep where its attention looks.

    Args:
        predictor: its network must have quadtree attention.
        image0, image1: A and B; a path, PIL image, numpy array or torch tensor each, see `data.images.read_image`. A matcher takes one or two: of
            one, its self-attention is shown. Stereo takes the left and the right image of a rectified pair. The others take one.
        max_size: images are shrunk until their longer side is at most this many pixels; by default 640 for matchers and 800 for stereo, as they
            match. The others have sizes of their own.

    Raises:
        ValueError, OSError: bad images or options; a network without quadtree attention.
    """
    if max_size is not None and not isinstance(predictor, Matcher | StereoMatcher):
        raise InputError(f"max_size is {max_size}, expected none: this network has a size of its own; leave it out")
    if isinstance(predictor, StereoMatcher):
        if image1 is None:
            raise InputError("the second image is missing, expected the right image of a rectified pair")
        return _of_stereo(predictor, image0, image1, 800 if max_size is None else max_size)
    if isinstance(predictor, Matcher):
        return _of_matcher(predictor, image0, image1, 640 if max_size is None else max_size)
    if image1 is not None:
        raise InputError(
            "two images were given, expected one: this network does not compare images; leave the second out"
        )
    return _of_backbone(predictor, image0)


def load_for_attention(name_or_path: str | Path, *, device: str | torch.device | None = None) -> Any:
    """The predictor of a name or a file of weights of any kind, for `image_attention`; "tiny" is the matcher. Raises as `from_pretrained`."""
    from ..weights import load
    from ..weights.kinds import kind_of
    from .device import check_device

    checked = check_device(device)
    model: Any = load(name_or_path)
    kinds: dict[str, Callable[..., Any]] = {
        "matcher": Matcher,
        "stereo": StereoMatcher,
        "classifier": Classifier,
        "detector": Detector,
        "segmenter": Segmenter,
    }
    kind = kind_of(model.config).name
    if kind not in kinds:
        raise InputError(f"{name_or_path} is of a {kind}, expected a {', '.join(kinds)}")
    return kinds[kind](model, checked)


def _of_matcher(matcher: Matcher, image0: Any, image1: Any, max_size: int) -> ImageAttention:
    images = [read_image(image) for image in (image0, image1) if image is not None]
    views = [whole_view(image, max_size, name) for image, name in zip(images, ("A", "B"), strict=False)]
    given = [torch.from_numpy(view.gray)[None, None].to(matcher.device) for view in views]
    with torch.inference_mode(), record_attention(matcher.model) as calls:
        matcher.model.encode(given[0], given[-1])
    frames = [_frame(STRIDE, view.gray.shape, image.shape) for view, image in zip(views, images, strict=True)]
    layers = []
    for call in calls:
        if call.number:  # the queries of the second image
            continue
        cross = int(re.findall(r"\d+", call.module)[0]) % 2 == 1
        if cross and len(images) == 1:
            continue
        name = "cross-attention" if cross else "self-attention"
        layers.append(_Layer(name, cross, [call], frames[0], frames[-1] if cross else frames[0]))
    return ImageAttention(tuple(_size(image) for image in images), layers)


def _of_stereo(matcher: StereoMatcher, image0: Any, image1: Any, max_size: int) -> ImageAttention:
    images = [read_image(image) for image in (image0, image1)]
    sizes = [_size(image) for image in images]
    if sizes[0] != sizes[1]:
        shown = [f"{width}x{height}" for height, width in sizes]
        raise InputError(f"the images have {shown[0]} and {shown[1]} pixels, expected a rectified pair of one size")
    small = [resize_longest(image, max_size, name)[0] for image, name in zip(images, ("A", "B"), strict=True)]
    given = [
        torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32) / 255)[None].to(matcher.device) for image in small
    ]
    with torch.inference_mode(), record_attention(matcher.model) as calls:
        matcher.model.scores(*given)
    frame = _frame(matcher.model.config.stride, small[0].shape, images[0].shape)
    layers = []
    of_layer: dict[int, list[AttentionCall]] = {}
    for call in calls:
        of_layer.setdefault(int(re.findall(r"\d+", call.module)[0]), []).append(call)
    for number, mine in sorted(of_layer.items()):
        cross = number % 2 == 1
        if cross:  # in turns: right rows that look to the left, and left rows that look to the right; the last layer has the former alone
            mine = mine[1::2] if number < max(of_layer) else []
        if mine:
            name = "cross-attention along the row" if cross else "self-attention along the row"
            layers.append(_Layer(name, cross, [call if cross else _left_rows(call) for call in mine], frame, frame))
    return ImageAttention(tuple(sizes), layers)


def _left_rows(call: AttentionCall) -> AttentionCall:
    """The first half of the rows of a call on both images."""
    half = call.batch // 2
    queries, keys, kept = ([x[:half] for x in tensors] for tensors in (call.queries, call.keys, call.kept))
    return AttentionCall(call.module, call.number, call.variant, queries, keys, call.valid, kept, call.weights)


def _of_backbone(predictor: Classifier | Detector | Segmenter, image: Any) -> ImageAttention:
    pixels = read_image(image)
    height, width = _size(pixels)
    left, top = 0.0, 0.0
    run: Callable[[torch.Tensor], Any]
    if isinstance(predictor, Classifier):
        given, (left, top, across, down) = predictor.prepare(pixels)
        run = predictor.model
    elif isinstance(predictor, Detector):
        tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255
        prepared, _ = predictor.model.transform([tensor])
        seen_height, seen_width = prepared.image_sizes[0]
        across, down = width / seen_width, height / seen_height
        given, run = prepared.tensors, predictor.model.backbone
    else:
        given = preprocess(pixels, **predictor.config.preprocessing)[None]
        across, down = width / given.shape[-1], height / given.shape[-2]
        run = predictor.model.maps
    with torch.inference_mode(), record_attention(predictor.model) as calls:
        run(given.to(predictor.device))
    layers = []
    for call in calls:
        place = re.search(r"stages[._](\d+)\.blocks\.(\d+)", call.module)
        if place is None:
            continue
        stage, block = (int(number) for number in place.groups())
        side = FIRST_STRIDE * 2**stage
        frame = Frame(left, top, side * across, side * down)
        layers.append(_Layer(f"stage {stage + 1}, block {block + 1}", False, [call], frame, frame))
    return ImageAttention(((height, width),), layers)


def _find(layer: _Layer, row: int, column: int) -> tuple[AttentionCall, int, tuple[int, ...] | None]:
    """The call that holds a cell, its entry of the batch, and the cell in its grid; no cell where the network does not see it."""
    first = layer.calls[0]
    if len(first.query_grid) == 2:
        rows, columns = first.query_grid
        return first, 0, (row, column) if 0 <= row < rows and 0 <= column < columns else None
    for call in layer.calls:
        if row < call.batch:
            return call, row, (min(column, call.query_grid[0] - 1),)
        row -= call.batch
    call = layer.calls[-1]
    return call, call.batch - 1, (min(column, call.query_grid[0] - 1),)  # the last pixels, of less than a row


def _frame(stride: int, seen: tuple[int, ...], given: tuple[int, ...]) -> Frame:
    """Cells of ``stride`` pixels of an image as the network sees it, in pixels of the image as given."""
    return Frame(0.0, 0.0, stride * given[1] / seen[1], stride * given[0] / seen[0])


def _cut(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes ``[N, 4]`` inside of an image of (height, width)."""
    return boxes.clip(0, np.array([size[1], size[0], size[1], size[0]], np.float32))


def _size(image: np.ndarray) -> tuple[int, int]:
    return image.shape[0], image.shape[1]


def _rounded(values: Sequence[float] | np.ndarray) -> list[float]:
    return [round(float(value), 2) for value in values]


def _short(number: int) -> str:
    for unit, size in (("billion", 10**9), ("million", 10**6)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:,}"
