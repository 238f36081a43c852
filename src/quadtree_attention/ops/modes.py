"""What PyTorch is doing around a call: running it as it stands, compiling it, tracing it, or transforming it for other derivatives."""

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
    """Whether more than values and one backward pass is asked for: torch.func (grad, vmap, jvp, ...) or forward-mode derivatives.

    Kernels know nothing of these. Reference operations, which do, must then run, whether or not a tensor at hand takes part.
    gradients: that a backward pass is given, which may be many at once (``is_grads_batched``).
    """
    return (
        peek_interpreter_stack() is not None
        or forward_derivatives()
        or any(is_legacy_batchedtensor(x) for x in gradients)
    )


def is_free() -> bool:
    """Whether tensors at hand may stand for others: then no branch may hang on their values."""
    return torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.jit.is_tracing() or is_transformed()


def is_eager(*tensors: Tensor) -> bool:
    """Whether all are ordinary CPU tensors of floats, with no compiling, tracing or function transform under way."""
    if is_free() or len_torch_dispatch_stack():
        return False
    return all(type(x) is Tensor and x.device.type == "cpu" and x.is_floating_point() for x in tensors)


def is_plain(*tensors: Tensor) -> bool:
    """Whether nothing but values is asked for: `is_eager`, and no gradient."""
    return is_eager(*tensors) and not (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))
