"""Which backend runs a call: each says whether it can, and why not."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

BACKENDS = ("reference", "cpu")
HAS_NUMBA = importlib.util.find_spec("numba") is not None
_warned = False


def supports(backend: str, x: Tensor) -> tuple[bool, str]:
    """Whether ``backend`` can run on tensors like ``x``, and if not, why."""
    if backend == "reference":
        return True, ""
    if backend == "cpu":
        if x.device.type != "cpu":
            return False, f"it runs on CPU tensors, these are on {x.device}"
        if torch.compiler.is_exporting():
            return False, "exported graphs hold plain PyTorch operations only"
        if not HAS_NUMBA:
            return False, "Numba is not installed; pip install numba"
        return True, ""
    return False, f"expected one of {', '.join(map(repr, BACKENDS))}"


def choose(backend: str | None, x: Tensor) -> Callable:
    """The ``attend`` function of the backend asked for, or of the best one for tensors like ``x``.

    Raises:
        ValueError: an unknown backend, or one that cannot run here.
    """
    if backend is not None:
        ok, reason = supports(backend, x)
        if not ok:
            raise ValueError(f"backend {backend!r} cannot be used: {reason}")
    elif supports("cpu", x)[0]:
        backend = "cpu"
    else:
        backend = "reference"
        if x.device.type == "cpu" and not torch.compiler.is_exporting():
            _warn_once()
    if backend == "cpu":
        from . import cpu

        return cpu.attend
    from . import reference

    return reference.attend


def _warn_once() -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            "Numba is not installed: quadtree attention runs on the slower reference backend; pip install numba",
            stacklevel=4,
        )
