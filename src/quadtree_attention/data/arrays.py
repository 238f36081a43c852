"""Reads files of arrays without running code that may be in them."""

from __future__ import annotations

import io
import math
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .decoding import one_line
from .pickles import PICKLE_ERRORS, unpickle

MAX_EXPANDED = 1 << 30  # bytes of all arrays of an .npz file
# What reading a damaged zip, .npy header or pickle raises.
_ARRAY_ERRORS = (
    *PICKLE_ERRORS,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    SyntaxError,
    tokenize.TokenError,
    MemoryError,
)

# How far the product of a rotation and its transpose may be from the identity: text files have rounded numbers.
_ROTATION = 1e-2


def read_arrays(path: str | Path) -> dict[str, Any]:
    """Read the arrays of an .npz file by name: a zip of arrays, or a pickled dictionary, such as MegaDepth's indexes.

    Objects may only be arrays, numbers, strings and containers of them; code in the file never runs.

    Raises:
        ValueError, OSError: it is missing, damaged, holds something else, or expands to more than 1 GiB, in one line that begins with its name.
    """
    path = Path(path)
    try:
        if not zipfile.is_zipfile(path):
            found = unpickle(path.read_bytes())
            if not isinstance(found, dict):
                raise ValueError(f"it holds a {type(found).__name__}")
            return {str(name): value for name, value in found.items()}
        with zipfile.ZipFile(path) as archive:
            if sum(one.file_size for one in archive.infolist()) > MAX_EXPANDED:
                raise ValueError(f"it expands to more than {MAX_EXPANDED >> 30} GiB")
            return {name.removesuffix(".npy"): _npy(archive.read(name)) for name in archive.namelist()}
    except OSError as error:
        raise type(error)(f"{path} cannot be read: {error.strerror or error}") from None
    except _ARRAY_ERRORS as error:
        raise InputError(
            f"{path}: not a file of arrays ({one_line(error)}), expected .npz with numbers and strings"
        ) from None


def read_npy(path: str | Path) -> np.ndarray:
    """Read an .npy file of numbers or strings; ValueError or OSError in one line that begins with the file's name."""
    path = Path(path)
    try:
        found = _npy(path.read_bytes())
    except OSError as error:
        raise type(error)(f"{path} cannot be read: {error.strerror or error}") from None
    except _ARRAY_ERRORS as error:
        raise InputError(f"{path}: not an array ({one_line(error)}), expected .npy with numbers") from None
    if not isinstance(found, np.ndarray):
        raise InputError(f"{path}: not an array, but a {type(found).__name__}, expected .npy with numbers")
    return found


def read_numbers(path: str | Path, what: str) -> np.ndarray:
    """Read a table of numbers from a text file; ``what`` names them in errors: ValueError or OSError in one line with the file's name."""
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # of numpy: an empty file, whose missing numbers the caller finds
            return np.loadtxt(path, encoding="utf-8-sig")
    except OSError as error:
        raise type(error)(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise InputError(f"{path}: not {what} ({one_line(error)}), expected text with numbers") from None


def entry(arrays: Mapping[str, Any], key: str, where: Any) -> Any:
    """One of the arrays of a file; ValueError with the names there are if it is missing."""
    if key not in arrays:
        raise InputError(f"{where}: no entry {key!r}, found {', '.join(sorted(arrays)[:8])}")
    return arrays[key]


def entries(arrays: dict[str, Any], key: str, where: Any) -> Any:
    """Like `entry`, for an array with a value for each image or pair."""
    values = entry(arrays, key, where)
    if not isinstance(values, list | tuple) and np.ndim(values) == 0:
        raise InputError(f"{where}: {key!r} is {values!r}, expected a value for each image or pair")
    return values


def camera_matrix(values: Any, where: str) -> np.ndarray:
    """Intrinsics ``[3, 3]``, float64, of what a file has at ``where``; ValueError unless these are finite, with focal lengths above 0."""
    K = as_numbers(values)
    if K.size != 9 or not np.isfinite(K).all() or min(K.flat[0], K.flat[4]) <= 0 or list(K.flat[6:]) != [0, 0, 1]:
        raise InputError(
            f"{where}: no camera, expected [3, 3] finite numbers with focal lengths above 0 and the last row 0 0 1"
        )
    return K.reshape(3, 3)


def pose_matrix(values: Any, where: str) -> np.ndarray:
    """A pose ``[4, 4]``, float64, of what a file has at ``where``, with the last row or without; ValueError unless it is a rotation and a shift."""
    T = as_numbers(values)
    if T.size in (12, 16):
        T = np.vstack([T.ravel()[:12].reshape(3, 4), [0, 0, 0, 1]])
        R = T[:3, :3]
        with np.errstate(all="ignore"):  # of products that are beyond float64
            if np.isfinite(T).all() and np.abs(R @ R.T - np.eye(3)).max() < _ROTATION and np.linalg.det(R) > 0:
                return T
    raise InputError(f"{where}: no pose, expected [4, 4] finite numbers, a rotation and a shift")


def as_numbers(values: Any) -> np.ndarray:
    """Convert to float64; empty if there is anything else, such as complex numbers."""
    try:
        array = np.asarray(values)
        return np.zeros(0) if array.dtype.kind == "c" else array.astype(np.float64)
    except (TypeError, ValueError):
        return np.zeros(0)


def _npy(data: bytes) -> Any:
    """The array of an .npy file; of Python objects too, and a 0-d object array as the object itself."""
    with np.errstate(all="ignore"):  # numpy multiplies the sides of a shape, however large
        return _checked_npy(data)


def _checked_npy(data: bytes) -> Any:
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = reader(file)
    if kind.hasobject:
        if kind != np.dtype(object):
            raise ValueError(f"it has entries of several parts, {kind!r:.60}")
        array = unpickle(data[file.tell() :])
        if not isinstance(array, np.ndarray):
            raise ValueError(f"it holds a {type(array).__name__}")
        return array.item() if array.ndim == 0 else array
    if kind.kind not in "biufcSU":
        raise ValueError(f"it has entries of type {kind!r:.60}")
    if min(shape, default=0) < 0 or math.prod(map(int, shape)) * kind.itemsize > len(
        data
    ):  # numpy would make room first
        raise ValueError(f"it is cut off: shape {shape!r:.60} of {kind}")
    return np.load(io.BytesIO(data), allow_pickle=False)
