"""What optimisers of several tasks share: which parameters decay, and how the learning rate goes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from ..errors import InputError, check_range


def check_rates(learning_rate: float, weight_decay: float, betas: Sequence[float], **others: float) -> None:
    """Make sure of what AdamW and its schedule are given; ``others`` are numbers from 0 up, by name.

    Raises:
        ValueError: the first that makes no sense.
    """
    check_range("learning_rate", learning_rate, 0, 100, above=True)
    if not all(0 <= beta < 1 for beta in betas):
        raise InputError(f"betas are {list(betas)}, expected two numbers from 0 to below 1")
    for name, value in {"weight_decay": weight_decay, **others}.items():
        check_range(name, value, 0)


def decaying(parameters: Iterable[nn.Parameter], weight_decay: float, vectors: bool = False) -> list[dict[str, Any]]:
    """Groups for AdamW: matrices and convolutions decay, vectors (biases, norms, level weights) only if asked for."""
    learnt = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in learnt if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in learnt if p.dim() <= 1], "weight_decay": weight_decay if vectors else 0.0},
    ]
    return [group for group in groups if group["params"]]


def rise_and_cosine(step: int, warmup: int, total: float, start: float = 0.0) -> float:
    """Share of the highest learning rate at a step: a linear rise from ``start``, and a cosine down to nothing at ``total``, if finite."""
    rise = start + (1 - start) * min(1.0, (step + 1) / max(1, warmup))
    return rise if math.isinf(total) else rise * 0.5 * (1 + math.cos(math.pi * min(step / total, 1.0)))


def timm_cosine(step: int, warmup: float, total: float, start: float, low: float) -> float:
    """Share of the highest learning rate at a step: a linear rise from ``start`` over ``warmup`` steps, then a cosine down to ``low`` at ``total``.

    As in timm and PVTv2 the cosine counts from the first step, not from the end of the rise.
    """
    if step < warmup:
        return start + (1 - start) * step / warmup
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(step / total, 1.0)))


def polynomial(step: int, total: float, power: float, warmup: int, start: float) -> float:
    """Share of the highest learning rate at a step: mmcv's policy "poly", down to 0 at ``total``, with a linear rise over ``warmup`` steps."""
    share = max(0.0, 1 - step / total) ** power
    if step < warmup:
        share *= 1 - (1 - step / warmup) * (1 - start)
    return share
