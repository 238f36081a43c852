"""Outlines of objects as COCO's files have them, polygons or run lengths: checked as data first, then filled."""

from __future__ import annotations

import reprlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from ...extras import require


class OutlineError(ValueError):
    """What is wrong with an outline, as the end of a sentence that it begins."""


@dataclass(frozen=True, eq=False)
class Outline:
    """An outline of an object in an image of ``size`` (height, width): polygons, each x0, y0, x1, y1, ..., or run lengths, column by column."""

    size: tuple[int, int]
    polygons: Sequence[list[float]] = ()
    runs: np.ndarray | None = None

    def mask(self) -> np.ndarray:
        """It filled: uint8 ``[H, W]``."""
        height, width = self.size
        if self.runs is not None:
            return np.repeat(np.arange(len(self.runs), dtype=np.uint8) % 2, self.runs).reshape(width, height).T
        masks = require("pycocotools.mask", "detect")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of numpy, about pycocotools
            return masks.decode(masks.merge(masks.frPyObjects(list(self.polygons), height, width)))


def parse_outline(outline: Any, size: tuple[int, int]) -> Outline:
    """An entry "segmentation" of an image of ``size`` (height, width).

    Polygons may reach as far out of the image as it is large. Run lengths may be numbers, or text as pycocotools packs them.

    Raises:
        OutlineError: it is neither.
    """
    height, width = size
    if isinstance(outline, Mapping):
        if outline.get("size") != [height, width]:
            _bad(f"has size {shown(outline.get('size'))}, expected [{height}, {width}], that of the image")
        counts = outline.get("counts")
        if isinstance(counts, str):
            counts = _unpacked(counts, height * width)
        if not isinstance(counts, list) or not all(type(one) is int and 0 <= one <= height * width for one in counts):
            _bad(f"has run lengths {shown(counts)}, expected a list of numbers of pixels, or text")
        if sum(counts) != height * width:
            _bad(f"has run lengths of {sum(counts)} pixels in all, expected {height * width}, those of the image")
        return Outline(size, runs=np.array(counts, np.int64))
    if not isinstance(outline, list) or not outline:
        _bad(f"is {shown(outline)}, expected polygons or run lengths")
    for polygon in outline:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2 or not all(map(is_number, polygon)):
            _bad(f"has a polygon {shown(polygon)}, expected at least 3 points, x and y of each")
        x, y = np.array(polygon[::2], np.float64), np.array(polygon[1::2], np.float64)
        if min(x.min() + width, y.min() + height, 2 * width - x.max(), 2 * height - y.max()) < 0:
            _bad(f"has a polygon {shown(polygon)} that is far outside its image of {width}x{height} pixels")
    return Outline(size, [[float(value) for value in polygon] for polygon in outline])


def is_number(value: Any) -> bool:
    """Whether a value of a json file is a number that a float64 can hold."""
    return type(value) in (int, float) and -1e300 < value < 1e300  # NaN is not


def shown(value: Any) -> str:
    """A value of a file, as Python writes it, shortened for a message."""
    return reprlib.repr(value)


def _unpacked(text: str, pixels: int) -> list[int]:
    """Run lengths of pycocotools' text: 5 bits a character, the lowest first; from the third on, differences to the last but one."""
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        code = ord(letter) - 48
        if not 0 <= code < 64 or shift > 60:
            _bad(f"has run lengths {shown(text)}, which are not as pycocotools packs them")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:  # goes on
            continue
        if code & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
        if not 0 <= counts[-1] <= pixels:
            _bad(f"has run lengths {shown(text)} that do not fit its image")
    if shift:
        _bad(f"has run lengths {shown(text)} that are cut off")
    return counts


def _bad(message: str) -> NoReturn:
    raise OutlineError(message)
