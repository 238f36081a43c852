"""Matching without the matrix: of the scores of all pairs of tokens of two images, only what matching asks for, a tile at a time.

The scores of 120,000 tokens with 120,000 others, images of 3200x2400 at 1/8, would take 58 GB. A match needs the sum of the exponentials of each row
and each column, and the few pairs that have a large share of both; a tile of scores gives its part of these and is forgotten.

`confident_pairs` is the definition in plain PyTorch, and runs a kernel where there is one: "cpu" in Numba (cpu_matching.py), "cuda" in Triton
(cuda_matching.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..errors import InputError
from .dispatch import Backend, supports

MASKED = -1e9  # score of a pair with a masked token, as LoFTR has it
NOTHING = -80.0  # logarithm of what does not change a sum of 1 and more
TILE = {"cpu": 2**22}  # scores held at once, by device
LARGE_TILE = 2**25  # on any other
LEAST = 1 / 64  # threshold of the pairs that are worth listing: a row has at most 64 of them

Kernel: TypeAlias = Callable[
    [Tensor, Tensor, float], tuple[Tensor, Tensor, Tensor]
]  # of one pair of images without masks


class Pairs(NamedTuple):
    """Image in the batch, token of image 0, token of image 1 (int64) and confidence, each ``[M]``; sorted by the first three."""

    b: Tensor
    i: Tensor
    j: Tensor
    confidence: Tensor


@torch.no_grad()
def confident_pairs(
    feat0: Tensor,
    feat1: Tensor,
    threshold: float,
    mask0: Tensor | None = None,
    mask1: Tensor | None = None,
    backend: Backend | None = None,
) -> Pairs:
    """All pairs of valid tokens whose confidence, softmax over rows times softmax over columns, is above a threshold.

    Args:
        feat0, feat1: ``[B, L, C]`` and ``[B, S, C]``, float32 or float64; their products are the scores.
        threshold: at least `LEAST`.
        mask0, mask1: bool ``[B, L]`` and ``[B, S]``, True = valid.
        backend: "reference", "cpu" or "cuda"; by default the kernel of their device, or the reference where it has none.

    Raises:
        ValueError: a backend that cannot run here.
    """
    kernel = _kernel(backend, feat0, feat1)
    if kernel is not None:
        return _image_by_image(kernel, feat0, feat1, threshold, mask0, mask1)
    sums0, sums1 = log_sums(feat0, feat1, mask0, mask1)
    found = []
    for rows, score in tiles(feat0, feat1, mask0, mask1):
        confidence = (2 * score - sums0[:, rows, None] - sums1[:, None]).exp_()
        b, i, j = torch.where(confidence > threshold)
        found.append((b, i + rows.start, j, confidence[b, i, j]))
    b, i, j, confidence = map(torch.cat, zip(*found, strict=True))
    order = torch.argsort(b, stable=True)  # tiles hold rows of all images
    if mask0 is not None and mask1 is not None:  # of two masked tokens
        order = order[mask0[b, i][order] & mask1[b, j][order]]
    return Pairs(b[order], i[order], j[order], confidence[order])


def _kernel(backend: Backend | None, feat0: Tensor, feat1: Tensor) -> Kernel | None:
    """The function of a kernel; None where there is none, and where "reference" was asked for."""
    chosen = backend or feat0.device.type
    if chosen not in ("cpu", "cuda"):
        return None
    narrow = feat0[..., :1]  # any number of channels will do
    ok, reason = supports("cpu" if chosen == "cpu" else "cuda", narrow)
    if ok and feat0.dtype != torch.float32:
        ok, reason = False, f"it knows float32, these are {feat0.dtype}"
    if not ok and backend is not None:
        raise InputError(f"backend {backend!r} cannot be used: {reason}")
    if ok and chosen == "cuda":
        from . import cuda_matching

        return cuda_matching.confident_pairs
    if ok:
        from . import cpu_matching

        # Larger scores, and what is no number, are left to plain PyTorch.
        return cpu_matching.confident_pairs if cpu_matching.bound(feat0, feat1) <= cpu_matching.WIDE else None
    return None


def _image_by_image(
    function: Kernel, feat0: Tensor, feat1: Tensor, threshold: float, mask0: Tensor | None, mask1: Tensor | None
) -> Pairs:
    """Pairs of images one after another, the valid tokens of each."""
    none = feat0.new_zeros(0, dtype=torch.int64)
    found = [(none, none, none, feat0.new_zeros(0))]
    for k, (one, other) in enumerate(zip(feat0, feat1, strict=True)):
        places0, places1 = (None if mask is None else mask[k].nonzero()[:, 0] for mask in (mask0, mask1))
        one, other = (x if places is None else x[places] for x, places in ((one, places0), (other, places1)))
        if not len(one) or not len(other):
            continue
        i, j, confidence = function(one, other, threshold)
        i, j = (x if places is None else places[x] for x, places in ((i, places0), (j, places1)))
        found.append((torch.full_like(i, k), i, j, confidence))
    return Pairs(*map(torch.cat, zip(*found, strict=True)))


def tiles(
    feat0: Tensor, feat1: Tensor, mask0: Tensor | None = None, mask1: Tensor | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Rows at a time, their scores ``[B, rows, S]``: those of a masked token are `MASKED`. Arguments as of `confident_pairs`."""
    size = max(1, TILE.get(feat0.device.type, LARGE_TILE) // max(1, feat0.shape[0] * feat1.shape[1]))
    for start in range(0, feat0.shape[1], size):
        rows = slice(start, min(start + size, feat0.shape[1]))
        score = feat0[:, rows] @ feat1.transpose(1, 2)
        if mask0 is not None:
            score.masked_fill_(~mask0[:, rows, None], MASKED)
        if mask1 is not None:
            score.masked_fill_(~mask1[:, None], MASKED)
        yield rows, score


def log_sums(
    feat0: Tensor, feat1: Tensor, mask0: Tensor | None = None, mask1: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Logarithm of the sum of exponentials of each row ``[B, L]`` and of each column ``[B, S]``."""
    of_rows, of_columns = [], feat1.new_full(feat1.shape[:2], float("-inf"))
    for _, score in tiles(feat0, feat1, mask0, mask1):
        of_rows.append(log_sum(score, 2))
        of_columns = torch.logaddexp(of_columns, log_sum(score, 1))
    return torch.cat(of_rows, 1), of_columns


def log_sum(x: Tensor, dim: int) -> Tensor:
    """``logsumexp``, many times as fast on a CPU: the exponential of what is next to nothing takes a slow path there."""
    peak = x.detach().amax(dim, keepdim=True)
    return (x - peak).clamp(min=NOTHING).exp().sum(dim).log() + peak.squeeze(dim)
