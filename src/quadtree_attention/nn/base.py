"""The base class of the attention modules: projections, checks, heads, masks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..ops.tree import check_mask


class Attention(nn.Module):
    """Multi-head attention of the tokens of a grid to the tokens of the same or of another grid.

    Subclasses implement `attend`. All share the call ``forward(x, context=None, *, mask=None, context_mask=None)``.

    Args:
        dim: channels in and out.
        num_heads: number of heads; divides ``dim``.
        qkv_bias: whether the query, key and value projections have a bias.
        proj_bias: whether the output projection has a bias.
    """

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool = True, proj_bias: bool = True) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise InputError(f"dim is {dim} and num_heads {num_heads}, expected num_heads to divide dim")
        self.dim = dim
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, dim, bias=qkv_bias)
        self.k_proj = nn.Linear(dim, dim, bias=qkv_bias)
        self.v_proj = nn.Linear(dim, dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim, bias=proj_bias)
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.proj):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend from ``x`` to ``context`` (default: ``x`` itself).

        Args:
            x: ``[B, *grid, dim]``, a grid of 1, 2 or 3 axes.
            context: ``[B, *context_grid, dim]``, as many axes; any size.
            mask, context_mask: bool ``[B, *grid]``, ``[B, *context_grid]``, True = valid. Without ``context``, ``mask`` serves both.

        Returns:
            ``[B, *grid, dim]``; zeros where ``mask`` is False.
        """
        if x.dim() not in (3, 4, 5) or x.shape[-1] != self.dim:
            raise InputError(
                f"x has shape {tuple(x.shape)}, expected [B, *grid, {self.dim}] with a grid of 1, 2 or 3 axes"
            )
        if context is None:
            if context_mask is not None:
                raise InputError("context_mask is given without context; for self-attention pass mask alone")
            context, context_mask = x, mask
        if context.dim() != x.dim() or context.shape[-1] != self.dim or context.shape[0] != x.shape[0]:
            raise InputError(
                f"context has shape {tuple(context.shape)}, expected [{x.shape[0]}, *grid, {self.dim}] with {x.dim() - 2} grid axes"
            )
        check_mask("mask", mask, x.shape[:-1])
        check_mask("context_mask", context_mask, context.shape[:-1])
        out = self.proj(self.attend(x, context, mask, context_mask).to(x.dtype))
        return out if mask is None else out.masked_fill(~mask[..., None], 0)

    def attend(self, x: Tensor, context: Tensor, mask: Tensor | None, context_mask: Tensor | None) -> Tensor:
        """``[B, *grid, dim]`` before the output projection."""
        raise TypeError(f"{type(self).__name__} defines no attend()")

    def heads(self, x: Tensor) -> Tensor:
        """``[..., dim]`` to ``[..., heads, dim / heads]``."""
        return x.unflatten(-1, (self.num_heads, -1))

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_heads={self.num_heads}"


def flat_heads(x: Tensor) -> Tensor:
    """``[B, *grid, heads, dim]`` to ``[B, heads, N, dim]``."""
    return x.flatten(1, -3).transpose(1, 2)


def sum_dtype(x: Tensor) -> Tensor:
    """``x`` in float32 if it is narrower: sums are never narrower than that."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
