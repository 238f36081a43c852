"""Reads maps with a number per pixel, such as disparity and depth, from .npy, .npz, .pfm, and images with their full bit depth."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..extras import require
from .arrays import read_arrays, read_npy
from .decoding import MAX_PIXELS, decode, opened, silenced

_PFM_HEADER = re.compile(rb"(PF|Pf)\s+(?:#[^\n]*\n\s*)*(-?\d{1,12})\s+(-?\d{1,12})\s+([-+.0-9a-zA-Z]{1,40})(\r\n|\s)")


def read_map(path: Path) -> np.ndarray:
    """Read .npy, .npz (its first array), .pfm, or an image (.png, .tif, .exr) with its full bit depth: ``[H, W]``, or ``[H, W, C]``.

    Raises:
        ValueError, OSError: it is missing, damaged, or something else, in one line that begins with its name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, expected a map of numbers")
    suffix = path.suffix.lower()
    if suffix in (".npy", ".npz"):
        found = read_npy(path) if suffix == ".npy" else next(iter(read_arrays(path).values()), None)
        if not isinstance(found, np.ndarray) or found.dtype.kind not in "biuf":
            raise InputError(f"{path}: not a file of numbers, expected an array of them")
        return found
    if suffix == ".pfm":
        return read_pfm(path)
    if suffix == ".exr":  # OpenCV reads it if the user has asked it to
        with silenced():
            found = require("cv2", "vision").imread(str(path), -1)
        if found is None:
            raise InputError(f"{path}: cannot be read as a map of numbers, expected .npy, .npz, .pfm, .tif or .png")
        return found
    with opened(path) as image:
        image = decode(image, str(path), upright=False)
        return np.asarray(image if image.mode != "P" else image.convert("RGB"))


def read_pfm(path: Path) -> np.ndarray:
    """Read a PFM file: float32 ``[H, W]``, or ``[H, W, 3]`` RGB.

    The sign of the header's scale gives the byte order; its size is ignored, as in Middlebury's tools.

    Raises:
        ValueError, OSError: no PFM file, or cut off.
    """
    with path.open("rb") as file:
        head = file.read(4096)
        found = _PFM_HEADER.match(head)
        if not found:
            raise InputError(f"{path} is not a PFM file, expected PF or Pf, width, height and a scale at its beginning")
        width, height, channels = int(found[2]), int(found[3]), 3 if found[1] == b"PF" else 1
        if width < 1 or height < 1 or width * height > MAX_PIXELS:
            raise InputError(f"{path} says that it has {width}x{height} pixels, expected 1 to {MAX_PIXELS} of them")
        try:
            scale = float(found[4])
        except ValueError:
            scale = math.nan
        if not math.isfinite(scale) or scale == 0:
            raise InputError(f"{path} has the scale {found[4].decode('ascii')}, expected a number below or above 0")
        size = 4 * width * height * channels
        file.seek(found.end())
        data = file.read(size) if path.stat().st_size - found.end() >= size else b""
    if len(data) < size:
        raise InputError(f"{path} is cut off: expected {size} bytes for its {width}x{height} pixels")
    values = np.frombuffer(data, "<f4" if scale < 0 else ">f4").reshape(height, width, *[3] * (channels > 1))
    return np.ascontiguousarray(values[::-1].astype(np.float32))  # rows go from the bottom up
