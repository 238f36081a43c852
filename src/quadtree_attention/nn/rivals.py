"""The attentions that quadtree attention is compared with in the paper, behind the same interface."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from .base import Attention, flat_heads, sum_dtype

LINEAR_EPS = 1e-6  # keeps the division finite, as LoFTR has it


class FullAttention(Attention):
    """Every token attends to every token, by torch's `scaled_dot_product_attention`."""

    def attend(self, x: Tensor, context: Tensor, mask: Tensor | None, context_mask: Tensor | None) -> Tensor:
        query = flat_heads(self.heads(self.q_proj(x)))
        key = flat_heads(self.heads(self.k_proj(context)))
        value = flat_heads(self.heads(self.v_proj(context)))
        return _dense(query, key, value, context_mask).flatten(-2).reshape(x.shape)


class LinearAttention(Attention):
    """Linear attention with the feature map elu(x) + 1 (Katharopoulos et al., arXiv 2006.16236), as LoFTR uses it."""

    def attend(self, x: Tensor, context: Tensor, mask: Tensor | None, context_mask: Tensor | None) -> Tensor:
        query = flat_heads(self.heads(self.q_proj(x)))
        key = flat_heads(self.heads(self.k_proj(context)))
        value = flat_heads(self.heads(self.v_proj(context)))
        return linear_attention(query, key, value, context_mask).transpose(1, 2).flatten(-2).reshape(x.shape)


class SpatialReductionAttention(Attention):
    """Keys and values come from the context pooled to a fixed grid (PVTv2's linear spatial reduction, arXiv 2106.13797).

    Args:
        dim, num_heads, qkv_bias, proj_bias: as in `Attention`.
        pool: cells of the fixed grid along each axis; 8 in the paper's comparison.
    """

    def __init__(
        self, dim: int, num_heads: int, *, pool: int = 8, qkv_bias: bool = True, proj_bias: bool = True
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias=qkv_bias, proj_bias=proj_bias)
        if pool < 1:
            raise InputError(f"pool is {pool}, expected at least 1")
        self.pool = pool

    def attend(self, x: Tensor, context: Tensor, mask: Tensor | None, context_mask: Tensor | None) -> Tensor:
        pooled, valid = self._reduce(context, context_mask)
        query = flat_heads(self.heads(self.q_proj(x)))
        key = flat_heads(self.heads(self.k_proj(pooled)))
        value = flat_heads(self.heads(self.v_proj(pooled)))
        return _dense(query, key, value, valid).flatten(-2).reshape(x.shape)

    def _reduce(self, context: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Means over the cells of the fixed grid, of valid tokens only: ``[B, *pooled, dim]`` and bool ``[B, *pooled]``."""
        size = [min(self.pool, n) for n in context.shape[1:-1]]
        x = context.movedim(-1, 1)
        if mask is None:
            return _pooled(x, size).movedim(1, -1), None
        weight = mask[:, None].to(x.dtype)
        share = _pooled(weight, size)
        pooled = _pooled(x * weight, size) / share.clamp(min=1e-6)
        return pooled.movedim(1, -1), share[:, 0] > 0

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, pool={self.pool}"


def _pooled(x: Tensor, size: Sequence[int]) -> Tensor:
    """Means of ``[B, C, *grid]`` over the cells of a grid of that size, of 1, 2 or 3 axes."""
    if len(size) == 1:
        return F.adaptive_avg_pool1d(x, size[0])
    if len(size) == 2:
        return F.adaptive_avg_pool2d(x, (size[0], size[1]))
    return F.adaptive_avg_pool3d(x, (size[0], size[1], size[2]))


def _dense(query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None) -> Tensor:
    """Scaled dot-product attention, ``[B, heads, N, d]`` to ``[B, N, heads, d]``; zeros where no key is valid."""
    if valid is None:
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
    valid = valid.flatten(1)[:, None, None, :]  # [B, 1, 1, Nk]
    some = valid.any(-1, keepdim=True)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=valid | ~some)
    return torch.where(some, out, out.new_zeros(())).transpose(1, 2)


def linear_attention(query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None = None) -> Tensor:
    """The arithmetic of `LinearAttention`: ``[B, heads, N, d]`` each, valid bool ``[B, ...]`` with Nk entries, to ``[B, heads, N, d]``."""
    query, key = F.elu(sum_dtype(query)) + 1, F.elu(sum_dtype(key)) + 1
    value = sum_dtype(value)
    if valid is not None:
        valid = valid.flatten(1)[:, None, :, None]
        key = key.masked_fill(~valid, 0)
        value = value.masked_fill(~valid, 0)
    count = value.shape[2]  # dividing by it and multiplying again keeps the sums small in half precision
    message = query @ (key.transpose(-1, -2) @ (value / count))
    total = query @ key.sum(2)[..., None]
    return message / (total + LINEAR_EPS) * count
