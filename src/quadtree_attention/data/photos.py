"""Reads photographs as grey images."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..errors import InputError
from .decoding import as_mode, decode, opened
from .images import MIN_SIDE, read_image, to_gray

_TRIES = 20  # broken photographs in a row before giving up


class Photographs:
    """Draws photographs at random; broken ones are skipped with a warning.

    Args:
        paths: of them.

    Raises:
        ValueError: there are none.
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        if not paths:
            raise InputError("got no photographs, expected at least one; list_photographs finds those of a folder")
        self.paths = [str(path) for path in paths]

    def draw(self, rng: np.random.Generator, read: Callable[[str], np.ndarray] = read_image) -> np.ndarray:
        """One that can be read, by ``read``.

        Raises:
            ValueError: 20 in a row cannot be.
        """
        for _ in range(_TRIES):
            path = self.paths[rng.integers(len(self.paths))]
            try:
                return read(path)
            except (ValueError, OSError) as error:
                # Python shows a warning of the same text once.
                warnings.warn(f"photograph skipped: {error}", stacklevel=2)
        raise InputError(f"{_TRIES} photographs in a row cannot be read, the last one {path}; check the folder")


def read_gray(path: str | Path, short_side: int | None = None, *, upright: bool = True) -> np.ndarray:
    """Read a photograph as ``[H, W]`` uint8 grey, with its EXIF rotation applied if ``upright``.

    short_side: a JPEG whose shorter side has at least twice as many pixels is decoded at 1/2, 1/4 or 1/8 of its size,
    which costs a fraction of the time; its shorter side never comes below ``short_side``.

    Raises:
        ValueError, OSError: not an image, damaged, or smaller than 32 pixels, in one line that begins with its name.
    """
    image = _read_jpeg(path, short_side, upright)
    if image is None:
        image = np.rint(to_gray(read_image(path, upright=upright)) * 255).astype(np.uint8)
    if min(image.shape) < MIN_SIDE:
        height, width = image.shape
        raise InputError(f"{path} is too small: {width}x{height} pixels, expected at least {MIN_SIDE} on each side")
    return image


def _read_jpeg(path: str | Path, short_side: int | None, upright: bool) -> np.ndarray | None:
    """Decode only the luma channel of a JPEG, which is fast; None for files that need full decoding."""
    with opened(path) as image:
        if image.format != "JPEG" or image.mode not in ("L", "RGB"):
            return None
        # Without a size the file is decoded whole.
        factor = min(1.0, short_side / min(image.size)) if short_side else 1.0
        image.draft("L", tuple(max(1, round(side * factor)) for side in image.size))
        return np.asarray(as_mode(decode(image, str(path), upright=upright), "L", str(path)))
