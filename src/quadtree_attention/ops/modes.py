"""Tells how PyTorch runs a call: eagerly, compiled, traced, or transformed for other derivatives."""

from __future__ import annotations

import torch
from torch import Tensor

from ..compat import (
    forward_derivatives,
    is_legacy_batchedtensor,
    len_torch_dispatch_stack,
    peek_interpreter_stack,
)


def is_transformed(*gradients: Tensor) -> bool:
    """Whether the call needs more than values and one backward pass: torch.func (grad, vmap, jvp, ...) or forward-mode derivatives.

    Kernels do not support these. The reference operations do, and must then run, even if none of the tensors takes part.
    gradients: those given to a backward pass, which may be many at once (``is_grads_batched``).
    """
    return (
        peek_interpreter_stack() is not None
        or forward_derivatives()
        or any(is_legacy_batchedtensor(x) for x in gradients)
    )


def is_free() -> bool:
    """Whether tensors may stand for others, as when tracing: then no branch may depend on their values."""
    return torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.jit.is_tracing() or is_transformed()


def is_eager(*tensors: Tensor) -> bool:
    """Whether all are ordinary float tensors on the CPU, without compiling, tracing or function transforms."""
    if is_free() or len_torch_dispatch_stack():
        return False
    return all(type(x) is Tensor and x.device.type == "cpu" and x.is_floating_point() for x in tensors)


def is_plain(*tensors: Tensor) -> bool:
    """Whether the call needs values only: `is_eager`, and no gradient."""
    return is_eager(*tensors) and not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))
