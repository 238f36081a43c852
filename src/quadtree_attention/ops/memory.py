"""Fresh memory for large CPU tensors, on huge pages where the system gives them.

Fetching fresh memory page by page took half of the time of a forward pass at 512x512 tokens. Numpy asks the kernel for huge pages (madvise), but
torch does so only if an environment variable is set before the process starts. So these tensors come from numpy.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from .modes import is_eager

DTYPES = {torch.float32: np.float32, torch.float64: np.float64, torch.int32: np.int32}


@cache
def keep_freed_memory() -> None:
    """Have the C library keep up to 64 MB of freed memory for the next tensors, instead of returning it and fetching it again.

    Fetching pages again took a quarter of the time of a backbone at 448x448 pixels. glibc sets its thresholds by the largest block freed so far,
    up to 32 MB; this block is never touched. Other C libraries ignore it.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8, device="cpu")


def empty(shape: tuple[int, ...], like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """``like.new_empty(shape)``, in huge pages if ``like`` is an ordinary CPU tensor of a dtype in `DTYPES`."""
    dtype = dtype or like.dtype
    # For deterministic algorithms, torch fills new memory with NaN; then torch must make it.
    if dtype not in DTYPES or not is_eager(like) or torch.are_deterministic_algorithms_enabled():
        return like.new_empty(shape, dtype=dtype)
    return torch.from_numpy(np.empty(shape, DTYPES[dtype]))


def zeros_like(x: Tensor) -> Tensor:
    """``torch.zeros_like(x)`` for a contiguous ``x``, also in huge pages."""
    if x.dtype not in DTYPES or not is_eager(x):
        return torch.zeros_like(x)
    return torch.from_numpy(np.zeros(x.shape, DTYPES[x.dtype]))


def contiguous(x: Tensor) -> Tensor:
    """``x.contiguous()``, with the copy in huge pages too; differentiable."""
    if x.is_contiguous() or not is_eager(x) or x.dtype not in DTYPES:
        return x.contiguous()
    return empty(tuple(x.shape), x).copy_(x)
