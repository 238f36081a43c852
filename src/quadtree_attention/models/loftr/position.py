"""Sine position encoding of a feature map."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import InputError
from ..sines import frequencies, sines


def sine_encoding(
    height: int, width: int, dim: int, *, bug: bool = False, device: torch.device | str | None = None
) -> Tensor:
    """Position encoding ``[height, width, dim]`` float32, as LoFTR has it.

    Channels 4i to 4i+3 are sin x, cos x, sin y, cos y at frequency ``10000 ** (-2i / (dim/2))``; positions start at 1.

    The original computes frequencies and angles in float32, so its numbers differ between processors. Ours do not: see ``models/sines.py``.
    At position p they differ from the original's by the errors of its arithmetic, at most ``(3 + 2 |log f|) f p + 2`` roundings of 2^-24.

    Args:
        dim: number of channels, a multiple of 4.
        bug: the form of LoFTR's first released weights, with frequency ``exp(-2i)`` whatever ``dim`` is.

    Raises:
        ValueError: ``dim`` is not a multiple of 4.
    """
    if dim % 4:
        raise InputError(f"position encoding of {dim} channels, expected a multiple of 4")
    pairs = dim // 4
    frequency = (
        torch.exp(-2 * torch.arange(pairs, dtype=torch.float64, device="cpu")) if bug else frequencies(10000.0, pairs)
    )
    y, x = (sines(torch.arange(1, size + 1, device=device), frequency) for size in (height, width))
    encoding = x[0].new_empty(height, width, pairs, 4)
    encoding[..., 0], encoding[..., 1] = x
    encoding[..., 2], encoding[..., 3] = (table[:, None] for table in y)
    return encoding.flatten(2)
