"""Sine position encoding of a feature map."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...errors import InputError


def sine_encoding(
    height: int, width: int, dim: int, *, bug: bool = False, device: torch.device | str | None = None
) -> Tensor:
    """Position encoding ``[height, width, dim]`` float32, as LoFTR has it.

    Channels 4i to 4i+3 are sin x, cos x, sin y, cos y at frequency ``10000 ** (-2i / (dim/2))``; positions start at 1.

    Args:
        dim: number of channels, a multiple of 4.
        bug: the form of LoFTR's first released weights, with frequency ``exp(-2i)`` whatever ``dim`` is.

    Raises:
        ValueError: ``dim`` is not a multiple of 4.
    """
    if dim % 4:
        raise InputError(f"position encoding of {dim} channels, expected a multiple of 4")
    step = -1.0 if bug else -math.log(10000.0) / (dim // 2)
    # In float32 step by step, whatever the model's dtype: published weights were trained with these very numbers.
    frequency = torch.exp(torch.arange(0, dim // 2, 2, device=device).float() * step)
    places = (torch.arange(1, size + 1, device=device).float() for size in (height, width))
    y, x = (place[:, None] * frequency for place in places)  # [height, dim / 4], [width, dim / 4]
    encoding = frequency.new_empty(height, width, dim // 4, 4)
    encoding[..., 0] = x.sin()
    encoding[..., 1] = x.cos()
    encoding[..., 2] = y.sin()[:, None]
    encoding[..., 3] = y.cos()[:, None]
    return encoding.flatten(2)
