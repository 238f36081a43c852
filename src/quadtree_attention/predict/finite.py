"""Checks that a network's outputs are finite: one that overflows would otherwise find nothing, or write nonsense."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..errors import InputError


def check_finite(said: Any) -> None:
    """Check that all outputs of a network, tensors in lists, tuples and dicts, are finite.

    Raises:
        ValueError: NaN or infinity.
    """
    if isinstance(said, Tensor):
        if not said.isfinite().all():
            raise InputError(
                "the network gives NaN or infinity, expected numbers: its weights have diverged, or need more precision than they run in; take an "
                "earlier checkpoint, or run it in float32"
            )
    elif isinstance(said, dict | list | tuple):
        for part in said.values() if isinstance(said, dict) else said:
            check_finite(part)


def check_outputs(part: nn.Module) -> None:
    """Have each call of a part of a network checked by `check_finite`, where its result is not all that can be seen; not in training."""
    part.register_forward_hook(_check)


def _check(part: nn.Module, _: Any, said: Any) -> None:
    if not part.training:
        check_finite(said)
