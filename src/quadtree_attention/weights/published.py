"""Reading published checkpoint files without running what may be pickled in them."""

from __future__ import annotations

import pickle
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from ..errors import InputError, MissingPackageError

# All that a pickled tensor needs. Storage types are resolved by torch.load itself.
_ALLOWED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch", "Size"): torch.Size,
}


class _Placeholder:
    """Stands for an object of any other class: takes all that unpickling does to it, and does nothing."""

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


class _TensorUnpickler(pickle.Unpickler):
    """Unpickler that knows tensors and plain containers; everything else becomes a `_Placeholder`."""

    def find_class(self, module: str, name: str) -> Any:
        return _ALLOWED.get((module, name), _Placeholder)


_TENSORS_ONLY = SimpleNamespace(
    __name__="tensors_only",
    Unpickler=_TensorUnpickler,
    load=lambda file, **options: _TensorUnpickler(file, **options).load(),
)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The contents of a .ckpt, .pth or .safetensors file, on the CPU; nothing pickled in it is ever run.

    Lightning checkpoints hold other objects besides the weights: whatever is not a tensor, a number, a string or a
    plain container is replaced by a placeholder.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            with warnings.catch_warnings():  # torch compares the source of pickled modules with the placeholder's
                warnings.simplefilter("ignore")
                content = torch.load(path, map_location="cpu", weights_only=False, pickle_module=_TENSORS_ONLY)
    except ImportError as error:
        raise MissingPackageError(f"{path}: reading it needs safetensors; pip install safetensors") from error
    except Exception as error:  # damaged files fail in many ways
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"{path}: not readable as a checkpoint ({reason}); expected torch.save or safetensors"
        ) from error
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: holds a {type(content).__name__}, expected a state_dict or a checkpoint with one")
    return dict(content)
