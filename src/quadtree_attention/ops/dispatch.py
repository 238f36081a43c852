"""Chooses the backend that runs a call: each says whether it can, and if not, why."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from ..errors import InputError
from .modes import is_transformed
from .tree import Tree

Variant = Literal["a", "b"]
Backend = Literal["reference", "cpu", "cuda"]
Attend: TypeAlias = Callable[
    [Tree, Tree, Tree, tuple[int, ...], Variant, Tensor | None], tuple[Tensor, list[Tensor]]
]  # see reference.attend

BACKENDS = get_args(Backend)
HAS_NUMBA = importlib.util.find_spec("numba") is not None
HAS_TRITON = importlib.util.find_spec("triton") is not None
CUDA_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
CUDA_DIM = 256  # channels of a head
CUDA_KEEP = 1024  # keys that a level passes on
_warned: set[str] = set()


def supports(backend: str, query: Tensor, value: Tensor | None = None, keep: int = 1) -> tuple[bool, str]:
    """Whether ``backend`` can run on tensors like these with levels that keep at most ``keep`` keys, and if not, why."""
    if backend == "reference":
        return True, ""
    if backend not in BACKENDS:
        return False, f"expected one of {', '.join(map(repr, BACKENDS))}"
    if torch.compiler.is_exporting():
        return False, "exported graphs hold plain PyTorch operations only"
    return (_cpu if backend == "cpu" else _cuda)(query, query if value is None else value, keep)


def _cpu(query: Tensor, value: Tensor, keep: int) -> tuple[bool, str]:
    if query.device.type != "cpu":
        return False, f"it runs on CPU tensors, these are on {query.device}"
    if not HAS_NUMBA:
        return False, "Numba is not installed; pip install numba"
    return True, ""


def _cuda(query: Tensor, value: Tensor, keep: int) -> tuple[bool, str]:
    if not HAS_TRITON:
        return False, "Triton is not installed; pip install triton"
    interpreted = (
        os.environ.get("TRITON_INTERPRET") == "1"
    )  # Triton's own switch: kernels then run on the CPU, for tests
    if query.device.type != "cuda" and not interpreted:
        return False, f"it runs on CUDA tensors, these are on {query.device}"
    if query.is_cuda and torch.version.cuda and torch.cuda.get_device_capability(query.device) < (8, 0):
        return False, f"{torch.cuda.get_device_name(query.device)} has a compute capability below 8.0"
    if query.dtype not in CUDA_DTYPES:
        return False, f"it knows float16, bfloat16 and float32, these are {query.dtype}"
    widest = max(query.shape[-1], value.shape[-1])
    if widest > CUDA_DIM:
        return False, f"it holds heads of at most {CUDA_DIM} channels, these have {widest}"
    if keep > CUDA_KEEP:
        return False, f"it keeps at most {CUDA_KEEP} keys a level, topk asks for {keep}"
    return True, ""


def choose(backend: Backend | None, query: Tensor, value: Tensor, keep: int) -> Attend:
    """The ``attend`` function of the backend asked for, or of the best one for tensors like these.

    Kernels give values and first gradients. Under torch.func and forward-mode derivatives the reference runs in their place.

    Raises:
        ValueError: an unknown backend, or one that cannot run here.
    """
    if backend is not None:
        ok, reason = supports(backend, query, value, keep)
        if not ok:
            raise InputError(f"backend {backend!r} cannot be used: {reason}")
    else:
        backend = "reference"
        by_device: dict[str, Backend] = {"cpu": "cpu", "cuda": "cuda"}
        best = by_device.get(query.device.type)
        if best is not None:
            ok, reason = supports(best, query, value, keep)
            if ok:
                backend = best
            elif not torch.compiler.is_exporting():
                _warn_once(reason)
    if is_transformed():  # whichever backend was asked for: plain operations have every derivative
        backend = "reference"
    if backend == "cpu":
        from .cpu import attend
    elif backend == "cuda":
        from .cuda import attend
    else:
        from .reference import attend
    return attend


def _warn_once(reason: str) -> None:
    if reason not in _warned:
        _warned.add(reason)
        warnings.warn(f"{reason}. Quadtree attention runs on the slower reference backend", stacklevel=4)
