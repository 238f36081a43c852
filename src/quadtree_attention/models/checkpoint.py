"""Reads checkpoint files from anywhere without running code that may be pickled in them, and finds the weights in them."""

from __future__ import annotations

import pickle
import struct
import warnings
import zipfile
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ..compat import PythonUnpickler, rebuild_parameter, rebuild_tensor, storage_key
from ..errors import InputError
from ..extras import require

# Of files of torch.save, called checkpoints here; older repositories of the Hub have .bin.
CHECKPOINT_SUFFIXES = (".ckpt", ".pth", ".pt", ".pth.tar", ".bin")
WEIGHT_SUFFIXES = (".safetensors", *CHECKPOINT_SUFFIXES)

# What torch, pickle and zipfile raise for damaged files; pickle's documentation has no complete list.
_DAMAGED = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    AttributeError,
    ImportError,
    LookupError,
    TypeError,
    ValueError,
    ArithmeticError,
    AssertionError,
    RuntimeError,  # torch's own, and its subclasses, such as RecursionError
)
_BOMB = 20  # largest ratio of a zipped file's size in memory to that on disk; torch.save does not compress

# Where a checkpoint has its weights; averaged ones first, as in timm.
_HOLDERS = ("state_dict_ema", "model_ema", "state_dict", "model")


class _Rebuild:
    """A function that a pickle may call, but not change."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def __setstate__(self, state: Any) -> None:
        pass


# All that a pickled tensor needs. torch.load itself resolves storage types.
_ALLOWED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _Rebuild(rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): _Rebuild(rebuild_parameter),
    ("torch", "Size"): torch.Size,
}


class _Placeholder:
    """Stands for an object of any other class: accepts whatever unpickling does to it, and does nothing."""

    dump_patches = False  # torch asks for it where a pickled module comes with its source; True would write a file

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> _Placeholder:
        return self

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    def add(self, item: Any) -> None:
        pass


class _TensorUnpickler(PythonUnpickler):
    """Unpickler for tensors and plain containers; everything else becomes a `_Placeholder`."""

    def find_class(self, module: str, name: str) -> Any:
        return _ALLOWED.get((module, name), _Placeholder)


class _StorageUnpickler(PythonUnpickler):
    """Unpickler that builds nothing, and notes which records are storages, and their sizes in bytes."""

    def __init__(self, file: Any) -> None:
        super().__init__(file, encoding="utf-8")
        self.found: list[tuple[str, int]] = []

    def find_class(self, module: str, name: str) -> Any:
        kind = getattr(torch, name, None) if name.endswith("Storage") else None
        return _Item(kind.dtype.itemsize if hasattr(kind, "dtype") else 1) if kind is not None else _Placeholder

    def persistent_load(self, pid: Any) -> _Placeholder:
        _, kind, key, _, count = pid
        size = kind.size if isinstance(kind, _Item) else 1
        self.found.append((str(key), int(count) * size))
        return _Placeholder()


class _Item(_Placeholder):
    """Stands for the type of a storage, whose items have this many bytes."""

    def __init__(self, size: int) -> None:
        self.size = size


_TENSORS_ONLY = SimpleNamespace(
    __name__="tensors_only",
    Unpickler=_TensorUnpickler,
    load=lambda file, **options: _TensorUnpickler(file, **options).load(),
)


def is_safetensors(path: Path) -> bool:
    """Whether the name is that of a .safetensors file."""
    return path.name.lower().endswith(".safetensors")


def is_checkpoint(path: Path) -> bool:
    """Whether the name is that of a file of torch.save."""
    return path.name.lower().endswith(CHECKPOINT_SUFFIXES)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of torch.save, or a .safetensors file, to the CPU. Code pickled in it never runs.

    Lightning checkpoints hold other objects besides the weights: whatever is not a tensor, a number, a string or a
    plain container is replaced by a placeholder.

    Raises:
        OSError: no such file, or it cannot be read.
        ValueError: not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if is_safetensors(path):
        safetensors = require("safetensors.torch", "vision")
        try:
            return safetensors.load_file(path)
        except require("safetensors", "vision").SafetensorError as error:
            raise _unreadable(path, error) from None
    try:
        with warnings.catch_warnings():  # torch compares the source of pickled modules with the placeholder's
            warnings.simplefilter("ignore")
            with path.open("rb") as file:
                zipped = file.read(4) == b"PK\x03\x04"  # as torch tells
            if zipped:
                _check_sizes(path)
            try:
                content = torch.load(path, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError:
                content = torch.load(path, map_location="cpu", weights_only=False, pickle_module=_TENSORS_ONLY)
    except MemoryError:
        raise _unreadable(path, "it asks for more memory than there is") from None
    except _DAMAGED as error:
        raise _unreadable(path, error) from None
    except OSError as error:
        if error.filename is not None:
            raise
        raise _unreadable(path, error) from None  # an offset outside the file
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: holds a {type(content).__name__}, expected a state_dict or a checkpoint with one")
    return dict(content)


def _unreadable(path: Path, error: object) -> InputError:
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    return InputError(f"{path}: not readable as a checkpoint ({reason}); expected torch.save or safetensors")


def _check_sizes(path: Path) -> None:
    """Check that each storage of a zipped checkpoint has as many bytes as its pickle says: torch would read beyond its end."""
    with zipfile.ZipFile(path) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        twice = [name for name, count in Counter(info.filename for info in archive.infolist()).items() if count > 1]
        if twice:
            raise ValueError(f"it has {twice[0]!r} twice")
        if sum(sizes.values()) > _BOMB * path.stat().st_size:
            raise ValueError(f"it holds {sum(sizes.values())} bytes in a file of {path.stat().st_size}")
        pickled = [name for name in sizes if name.split("/")[-1] == "data.pkl"]
        if len(pickled) != 1:
            raise ValueError(f"it has {len(pickled)} files data.pkl, expected one")
        with archive.open(pickled[0]) as file:
            storages = _StorageUnpickler(file)
            storages.load()
    for key, size in storages.found:
        there = sizes.get(f"{pickled[0].removesuffix('.pkl')}/{key}")
        if there is None or not 0 <= size <= there:
            raise ValueError(f"tensor data {key!r} has {'no' if there is None else there} bytes, expected {size}")


def names_in(content: Mapping[str, Any]) -> list[str]:
    """The names of `weights_in`; none if there are no weights."""
    try:
        return list(weights_in(content))
    except InputError:
        return []


def weights_in(content: Mapping[str, Any]) -> dict[str, Any]:
    """The weights in a checkpoint, as read: averaged ones if there are any, without the prefixes that wrappers add to names.

    These are "_orig_mod." from torch.compile, and "module." from DataParallel, DistributedDataParallel and AveragedModel.

    Raises:
        ValueError: there are none, or two of the same name.
    """
    held = [content[holder] for holder in _HOLDERS if holder in content]
    inner = next((state for state in held if isinstance(state, Mapping) and state), None if held else content)
    if not isinstance(inner, Mapping) or not inner:
        raise InputError(
            "no weights found: expected a state_dict, or a checkpoint that has one under 'state_dict' or 'model'"
        )
    state: dict[str, Any] = {}
    needed, storages = 0, {}
    for key, value in inner.items():
        if type(value) in (torch.Tensor, torch.nn.Parameter) and value.layout == torch.strided:
            storage = value.untyped_storage()
            storages[storage_key(storage)] = storage.nbytes()
            needed += value.numel() * value.element_size()
        name = str(key).replace("_orig_mod.", "").removeprefix("module.")
        if name in state:
            raise InputError(f"{name} is there twice, with a prefix and without, expected one set of weights")
        if name != "n_averaged":  # of AveragedModel
            state[name] = value
    if needed > 4 * sum(storages.values()) + 2**26:
        raise InputError(
            f"the weights are {needed} bytes of {sum(storages.values())} in the file, repeated; expected each of its own"
        )
    return state


def misfit(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """Say how the names and shapes of two sets of weights differ; empty if they do not."""
    want, have = shapes(wanted), shapes(given)
    missing, unexpected = want.keys() - have.keys(), have.keys() - want.keys()
    differ = sorted(key for key in want.keys() & have.keys() if want[key] != have[key])
    if not missing and not unexpected and not differ:
        return ""
    example = f"for example {min(missing or unexpected)}" if missing or unexpected else ""
    if differ:
        example = f"{differ[0]} has shape {have[differ[0]]}, expected {want[differ[0]]}"
    return f"{len(missing)} missing, {len(unexpected)} unexpected, {len(differ)} of another shape; {example}"


def shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of weights."""
    return {key: tuple(value.shape) for key, value in state.items()}
