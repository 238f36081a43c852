"""Files of arrays, read without ever running code of theirs."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..extras import require

_ROTATION = (
    1e-2  # how far the product of a rotation and its transpose may be from the identity: numbers are rounded in text
)


class _ArraysOnly(pickle.Unpickler):
    """Unpickles arrays of arrays, numbers and strings, and nothing that could run code."""

    _allowed = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
            ("_codecs", "encode"),  # how older pickles spell bytes
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return super().find_class(module, name)


def read_arrays(path: str | Path) -> dict[str, Any]:
    """The arrays of an .npz file by name: a zip of arrays, or a pickled dictionary, as MegaDepth's indexes are.

    Objects may only be arrays, numbers, strings and containers of them: no code of the file is ever run.
    """
    path = Path(path)
    try:
        if not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                return dict(_ArraysOnly(file).load())
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy"): _read_npy(archive.read(name)) for name in archive.namelist()}
    except OSError as error:
        raise type(error)(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # a damaged pickle raises almost anything
        message = " ".join(str(error).split())
        raise InputError(f"{path}: not a file of arrays ({message}), expected .npz with numbers and strings") from None


def entry(arrays: Mapping[str, Any], key: str, where: Any) -> Any:
    """One of the arrays of a file; ValueError with what there is if it is missing."""
    if key not in arrays:
        raise InputError(f"{where}: no entry {key!r}, found {', '.join(sorted(arrays)[:8])}")
    return arrays[key]


def entries(arrays: dict[str, Any], key: str, where: Any) -> Any:
    """As `entry`, of one that has a value for each image or pair."""
    values = entry(arrays, key, where)
    if not isinstance(values, list | tuple) and np.ndim(values) == 0:
        raise InputError(f"{where}: {key!r} is {values!r}, expected a value for each image or pair")
    return values


def camera_matrix(values: Any, where: str) -> np.ndarray:
    """Intrinsics ``[3, 3]``, float64, of what a file has at ``where``; ValueError unless these are finite, with focal lengths above 0."""
    K = _numbers(values)
    if K.size != 9 or not np.isfinite(K).all() or min(K.flat[0], K.flat[4]) <= 0 or list(K.flat[6:]) != [0, 0, 1]:
        raise InputError(
            f"{where}: no camera, expected [3, 3] finite numbers with focal lengths above 0 and the last row 0 0 1"
        )
    return K.reshape(3, 3)


def pose_matrix(values: Any, where: str) -> np.ndarray:
    """A pose ``[4, 4]``, float64, of what a file has at ``where``, with the last row or without; ValueError unless it is a rotation and a shift."""
    T = _numbers(values)
    if T.size in (12, 16):
        T = np.vstack([T.ravel()[:12].reshape(3, 4), [0, 0, 0, 1]])
        R = T[:3, :3]
        if np.isfinite(T).all() and np.abs(R @ R.T - np.eye(3)).max() < _ROTATION and np.linalg.det(R) > 0:
            return T
    raise InputError(f"{where}: no pose, expected [4, 4] finite numbers, a rotation and a shift")


def _numbers(values: Any) -> np.ndarray:
    """Float64 numbers; none if there are any others."""
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError):
        return np.zeros(0)


def _read_npy(data: bytes) -> Any:
    """An array of a zip; of Python objects too, and a 0-d object array as the object itself."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    if reader(file)[2].hasobject:
        array = _ArraysOnly(file).load()
        return array.item() if array.ndim == 0 else array
    return np.load(io.BytesIO(data), allow_pickle=False)


def read_map(path: Path) -> np.ndarray:
    """An array [H, W] from .npy, .npz, or what OpenCV reads with its depth kept (.png, .tif, .pfm, .exr)."""
    if not path.is_file():  # OpenCV would say so by itself, on stderr
        raise FileNotFoundError(f"{path} does not exist, expected a map of numbers")
    if path.suffix in (".npy", ".npz"):
        try:
            values = np.load(path, allow_pickle=False)
            if isinstance(values, np.ndarray):
                return values
            with values as archive:
                return archive[archive.files[0]]
        except Exception as error:  # numpy has many, none with the file's name
            raise InputError(f"{path}: not a file of numbers ({' '.join(str(error).split())})") from None
    cv2 = require("cv2", "vision")
    values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise InputError(f"{path}: cannot be read as a map of numbers, expected .npy, .npz, .pfm, .tif or .png")
    return values
