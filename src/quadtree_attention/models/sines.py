"""Sines and cosines of positions, from which all position encodings are made.

Frequencies and angles are float64, and the result is rounded once, to the dtype that the network works in. So the numbers are the same on every
machine. In float32 they are not: its ``exp`` and ``sin`` differ by an ulp between processors, and the angle has that error of the frequency times the
position.
"""

from __future__ import annotations

import torch
from torch import Tensor


def frequencies(base: float, pairs: int) -> Tensor:
    """``base ** (-i / pairs)`` for i = 0 ... pairs - 1: ``[pairs]`` float64, on the CPU."""
    return base ** (-torch.arange(pairs, dtype=torch.float64, device="cpu") / pairs)


def sines(place: Tensor, frequency: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Sine and cosine of position times frequency: place ``[W]``, frequency ``[pairs]`` float64; each ``[W, pairs]``, on the device of place."""
    device = "cpu" if place.device.type == "mps" else place.device  # Apple's GPUs have no float64
    angle = place.to(device, torch.float64)[:, None] * frequency.to(device)
    return angle.sin().to(place.device, dtype), angle.cos().to(place.device, dtype)
