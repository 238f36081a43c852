"""Files of arrays, read without ever running code of theirs."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ..extras import require


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
        raise ValueError(f"{path}: not a file of arrays ({message}), expected .npz with numbers and strings") from None


def entry(arrays: dict[str, Any], key: str, where: Any) -> Any:
    """One of the arrays of a file; ValueError with what there is if it is missing."""
    if key not in arrays:
        raise ValueError(f"{where}: no entry {key!r}, found {', '.join(sorted(arrays)[:8])}")
    return arrays[key]


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
        values = np.load(path, allow_pickle=False)
        if isinstance(values, np.ndarray):
            return values
        with values as archive:
            return archive[archive.files[0]]
    cv2 = require("cv2", "vision")
    values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise ValueError(f"{path}: cannot be read as a map of numbers, expected .npy, .npz, .pfm, .tif or .png")
    return values
