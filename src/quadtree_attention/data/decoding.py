"""Opens and decodes image files with Pillow; every failure becomes one line that begins with the name of the file."""

from __future__ import annotations

import os
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..extras import require

MAX_PIXELS = 178_956_970  # a quarter of 2**29 * 4/3 bytes: what Pillow itself takes for a decompression bomb
# What Pillow's readers raise for damaged files. Nothing of ours runs where these are caught.
DECODER_ERRORS = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    AssertionError,
    struct.error,
    zlib.error,
)
_ORIENTATION = 0x0112  # of EXIF
_UPRIGHT = (  # by orientation, from 2 on: names of Pillow's transpositions
    "FLIP_LEFT_RIGHT",
    "ROTATE_180",
    "FLIP_TOP_BOTTOM",
    "TRANSPOSE",
    "ROTATE_270",
    "TRANSVERSE",
    "ROTATE_90",
)
_BACK = {6: 8, 8: 6}  # what undoes an orientation; the others undo themselves
_SILENCE = threading.Lock()


@contextmanager
def opened(path: str | Path) -> Iterator[Any]:
    """Open a file as a Pillow image without decoding it; `decode` does that.

    Raises:
        ValueError, OSError: it is missing, or not an image.
    """
    path, pil = Path(path), require("PIL.Image", "vision")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, expected an image file")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist, expected an image file")
    if not path.is_file():
        raise InputError(f"{path} is not a regular file, expected an image file")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes), expected an image file")
    try:
        # Large pieces: Pillow asks for small ones, which some file systems are slow to give. And a file, not its name, of which Pillow would
        # map a TIFF into memory, and get one with an EXIF rotation wrong.
        file = path.open("rb", buffering=1 << 20)
    except OSError as error:
        raise type(error)(f"{path} cannot be read: {error.strerror or error}") from None
    with file:
        try:
            with _quiet_pillow(), silenced():
                image = pil.open(file)
        except pil.UnidentifiedImageError:
            raise InputError(f"{path} is not an image of a kind that Pillow can read") from None
        except pil.DecompressionBombError:
            raise InputError(f"{path} has more than {MAX_PIXELS} pixels; make it smaller first") from None
        except DECODER_ERRORS as error:
            raise InputError(f"{path} is damaged: {one_line(error)}") from None
        with image:
            yield image


def decode(image: Any, name: str, *, upright: bool) -> Any:
    """Decode the first frame of a Pillow image, with its EXIF rotation applied if ``upright``, else as it is stored.

    Raises:
        ValueError: it is damaged, or has more than `MAX_PIXELS`.
    """
    width, height = image.size
    if width == 0 or height == 0:
        raise InputError(f"{name} has size {width}x{height}, expected at least 1x1 pixel")
    if width * height > MAX_PIXELS:
        raise InputError(f"{name} has {width}x{height} pixels, expected at most {MAX_PIXELS}; make it smaller first")
    tiff = getattr(image, "format", None) == "TIFF"
    stored = orientation(image) if tiff else 1
    if stored > 1:
        image.filename = ""  # no memory mapping, see `opened`; this image may be the caller's
    try:
        with _quiet_pillow(), silenced() if tiff else nullcontext():  # libtiff writes to stderr itself
            image.load()
    except OSError as error:
        raise InputError(f"{name} is truncated or damaged: {one_line(error)}") from None
    except MemoryError:  # also what Pillow says of rows that are too long for it
        raise InputError(f"{name} cannot be decoded: {width}x{height} pixels take too much memory") from None
    except DECODER_ERRORS as error:
        raise InputError(f"{name} cannot be decoded: {one_line(error)}") from None
    left = orientation(image)
    if upright:
        return transposed(image, left)
    if stored > 1 and left == 1:  # Pillow turns TIFFs as it decodes them, and takes the mark away
        return transposed(image, _BACK.get(stored, stored))
    return image


def orientation(image: Any) -> int:
    """EXIF orientation, 1 to 8, of an image; 1 if there is none, or the metadata is damaged. PNGs are decoded for it."""
    try:
        with _quiet_pillow():
            found = image.getexif().get(_ORIENTATION, 1)
    except DECODER_ERRORS:  # the pixels are fine, and the metadata can be anything
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def transposed(image: Any, turn: int) -> Any:
    """Rotate an image of orientation ``turn``, 1 to 8, upright."""
    if turn == 1:
        return image
    return image.transpose(getattr(require("PIL.Image", "vision").Transpose, _UPRIGHT[turn - 2]))


def as_mode(image: Any, mode: str, name: str) -> Any:
    """Convert a decoded image to another mode of Pillow; ValueError if a damaged palette or transparency prevents that."""
    if image.mode == mode:  # Pillow would copy it
        return image
    try:
        return image.convert(mode)
    except DECODER_ERRORS as error:
        raise InputError(f"{name} cannot be decoded: {one_line(error)}") from None


@contextmanager
def silenced() -> Iterator[None]:
    """Context that drops what C libraries write to stderr. It affects the whole process, so keep it short."""
    with _SILENCE:
        try:
            if sys.stderr is not None:
                sys.stderr.flush()
            saved = os.dup(2)
        except (OSError, ValueError):  # closed: nothing to silence
            yield
            return
        nothing = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nothing, 2)
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            os.close(nothing)


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Context that drops Pillow's warnings: on large sizes, which are checked here, and on odd metadata."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def one_line(error: Exception) -> str:
    """The message of an error, in one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__
