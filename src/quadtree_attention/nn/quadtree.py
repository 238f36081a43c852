"""QuadtreeAttention: the operator with projections, level weights, value branches and LePE, as in the published networks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..ops import token_pyramid
from ..ops.dispatch import Backend, Variant
from ..ops.tree import build_valid, from_tree, level_grids, stretch
from .base import Attention
from .recording import recorded_attention

ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU}


class QuadtreeAttention(Attention):
    """Multi-head quadtree attention over a token grid (paper, sections 3.1 and 3.2).

    Query and key pyramids are averages of the projected tokens. Variant "b" weighs its levels by the softmax of a learnt vector.

    Args:
        dim: channels in and out.
        num_heads: number of heads; divides ``dim``.
        levels: levels of the tree. With one level this is full attention.
        topk: keys kept at each level but the last, coarse to fine: ``levels - 1`` numbers or one for all.
        variant: "a" or "b".
        value: "pool" averages the values; "conv" (2-D only) makes each coarser level from the next finer one by GroupNorm, activation,
            2x2 convolution of stride 2, GroupNorm, activation, 1x1 convolution, as the published backbones do.
        value_act: activation of these branches: "gelu" (published for classification) or "relu" (detection, segmentation).
        lepe: add a depthwise 3x3 convolution of each level's values to that level's message (2-D, variant "b").
        qkv_bias, proj_bias: whether the projections have a bias.
        backend: backend of the operator; None picks the best.

    Raises:
        ValueError: options that do not fit together.
    """

    uses_quadtree = True  # for record_attention

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        levels: int = 3,
        topk: int | Sequence[int] = (32, 16),
        variant: Variant = "b",
        value: Literal["pool", "conv"] = "pool",
        value_act: Literal["gelu", "relu"] = "gelu",
        lepe: bool = False,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        backend: Backend | None = None,
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias=qkv_bias, proj_bias=proj_bias)
        if levels < 1:
            raise InputError(f"levels is {levels}, expected at least 1")
        topk = (topk,) * (levels - 1) if isinstance(topk, int) else tuple(topk)
        if len(topk) != levels - 1:
            raise InputError(
                f"topk has {len(topk)} entries for {levels} levels, expected {levels - 1}: one for each level but the last"
            )
        if variant not in ("a", "b"):
            raise InputError(f"variant is {variant!r}, expected 'a' or 'b'")
        if value not in ("pool", "conv"):
            raise InputError(f"value is {value!r}, expected 'pool' or 'conv'")
        if value_act not in ACTIVATIONS:
            raise InputError(f"value_act is {value_act!r}, expected one of {', '.join(map(repr, ACTIVATIONS))}")
        if lepe and variant == "a":
            raise InputError("lepe=True needs variant 'b': variant 'a' has no messages of single levels to add it to")
        self.levels = levels
        self.topk = topk
        self.variant = variant
        self.value = value
        self.backend = backend
        self.level_weights = nn.Parameter(torch.randn(levels)) if variant == "b" else None
        # Annotated here, because TorchScript reads the annotations of classes and does not know Any.
        self.lepe: Any = (  # one nn.Conv2d a level
            nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1, groups=dim) for _ in range(levels)) if lepe else None
        )
        self.value_branches: Any = None  # one nn.Sequential a level but the last
        if value == "conv":  # [l] makes level l from level l + 1
            act = ACTIVATIONS[value_act]
            self.value_branches = nn.ModuleList(
                nn.Sequential(
                    nn.GroupNorm(1, dim),
                    act(),
                    nn.Conv2d(dim, dim, 2, stride=2),
                    nn.GroupNorm(1, dim),
                    act(),
                    nn.Conv2d(dim, dim, 1),
                )
                for _ in range(levels - 1)
            )

    def attend(self, x: Tensor, context: Tensor, mask: Tensor | None, context_mask: Tensor | None) -> Tensor:
        if (self.lepe is not None or self.value == "conv") and x.dim() != 4:
            raise InputError(
                f"x has {x.dim() - 2} grid axes, expected 2: value='conv' and lepe=True are two-dimensional"
            )
        if self.lepe is not None and context.shape != x.shape:
            raise InputError(
                f"context has grid {tuple(context.shape[1:-1])}, expected x's, {tuple(x.shape[1:-1])}: lepe=True adds a map of the "
                "context's values to the output; use lepe=False for another grid"
            )
        query, key, value = self.q_proj(x), self.k_proj(context), self.v_proj(context)
        weights = self.level_weights.softmax(0) if self.level_weights is not None else None
        values: Tensor | list[Tensor]
        if self.lepe is None and self.value == "pool":
            values = self.heads(value)  # the operator averages them
        else:
            maps = self._value_pyramid(value, context_mask)
            values = [self.heads(level).to(query.dtype) for level in maps]
        out = recorded_attention(
            self,
            self.heads(query),
            self.heads(key),
            values,
            topk=self.topk,
            levels=self.levels,
            variant=self.variant,
            level_weights=weights,
            query_mask=mask,
            key_mask=context_mask,
            backend=self.backend,
        ).flatten(-2)
        if self.lepe is None or weights is None:  # variant "a", without weights, has no LePE
            return out
        return self._add_positions(out, maps, weights)

    def scripted(self, x: Tensor) -> Tensor:
        """Self-attention of ``[B, *grid, dim]`` without masks, as TorchScript compiles it; the same numbers as `forward`."""
        query, key, value = self.heads(self.q_proj(x)), self.heads(self.k_proj(x)), self.v_proj(x)
        values = [self.heads(value)]
        if self.value_branches is not None:
            pooled = value.permute(0, 3, 1, 2)
            for level in range(self.levels - 2, -1, -1):
                for index, branch in enumerate(self.value_branches):  # TorchScript has no other way to choose a module
                    if index == level:
                        for place, part in enumerate(branch):
                            pooled = part(_even(pooled) if place == 2 else pooled)
                values.insert(0, self.heads(pooled.permute(0, 2, 3, 1)))
        elif self.lepe is not None:
            values = torch.ops.quadtree_attention.pyramid(values[0], self.levels)
        weights: Tensor | None = None
        if self.level_weights is not None:
            weights = self.level_weights.softmax(0)
        out, _ = torch.ops.quadtree_attention.attention(
            [query], [key], values, self.levels, self.topk, self.variant, weights, None, None, self.backend, False
        )
        out = out.flatten(-2)
        if self.lepe is not None and weights is not None:
            total = torch.zeros_like(out[:, :1, :1])
            for level, conv in enumerate(self.lepe):
                local = conv(values[level].flatten(-2).permute(0, 3, 1, 2)).permute(0, 2, 3, 1) * weights[level]
                copied = total.repeat_interleave(2, 1).repeat_interleave(2, 2)
                total = local if level == 0 else local + copied[:, : local.shape[1], : local.shape[2]]
            out = out + total
        return self.proj(out)

    def _value_pyramid(self, value: Tensor, mask: Tensor | None) -> list[Tensor]:
        """``levels`` maps ``[B, *grid_l, dim]``, coarse to fine, zero at invalid tokens."""
        if mask is not None:
            value = value.masked_fill(~mask[..., None], 0)
        if self.value_branches is None:
            return [level.flatten(-2) for level in token_pyramid(self.heads(value), self.levels, mask=mask)]
        grids = level_grids(value.shape[1:-1], self.levels)
        masks: list[Tensor | None] = [None] * self.levels
        valid = None if mask is None else build_valid(mask, grids, value.shape[0], value.device)
        if valid is not None:
            masks = [
                from_tree(v[:, None, :, None], grids[0], level, grids[level])[..., 0, 0]
                for level, v in enumerate(valid)
            ]
        maps = [value.permute(0, 3, 1, 2)]
        for level in reversed(range(self.levels - 1)):
            maps.append(_value_branch(self.value_branches[level], maps[-1], masks[level + 1], masks[level]))
        return [level.permute(0, 2, 3, 1) for level in reversed(maps)]

    def _add_positions(self, out: Tensor, values: list[Tensor], weights: Tensor) -> Tensor:
        """``out`` ``[B, H, W, dim]`` plus the weighted depthwise convolution of each level's values, copied to all descendants."""
        for level, (weight, conv, value) in enumerate(zip(weights, self.lepe, values, strict=True)):
            # The weight goes into the kernel: one pass over the map less.
            local = F.conv2d(
                value.permute(0, 3, 1, 2), conv.weight * weight, conv.bias * weight, padding=1, groups=self.dim
            )
            local = local.permute(0, 2, 3, 1)
            if level == 0:
                total = local
            else:
                total = _add_to_children(total, local)
        return total + out

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, levels={self.levels}, topk={self.topk}, variant={self.variant!r}, value={self.value!r}"


def _value_branch(branch: Iterable[Any], x: Tensor, fine_mask: Tensor | None, mask: Tensor | None) -> Tensor:
    """One step of the conv pyramid, ``[B, C, H, W]`` to ``[B, C, ceil(H/2), ceil(W/2)]``; masked tokens take no part."""
    norm1, act1, down, norm2, act2, mix = branch
    x = _hide(act1(_group_norm(norm1, x, fine_mask)), fine_mask)
    x = _halved(x, down)
    return _hide(mix(act2(_group_norm(norm2, x, mask))), mask)


def _halved(x: Tensor, down: nn.Conv2d) -> Tensor:
    """A 2x2 convolution of stride 2 on ``[B, C, H, W]``, zero-padded at the end where a side is odd."""
    if not torch.compiler.is_exporting():
        if x.shape[-1] % 2 == x.shape[-2] % 2 == 0:
            return down(x)
        return down(_even(x))
    sizes = [
        (side + 1) // 2 for side in x.shape[-2:]
    ]  # written as the operator writes them, so that the exporter sees that free sizes are equal
    for axis, size in zip((2, 3), sizes, strict=True):
        x = stretch(x, axis, 2 * size)
    x = down(x)
    for axis, size in zip((2, 3), sizes, strict=True):
        x = x.index_select(axis, torch.arange(size, device=x.device))
    return x


def _even(x: Tensor) -> Tensor:
    """``[B, C, H, W]`` with a zero at the end of each odd side."""
    return F.pad(x, [0, x.shape[-1] % 2, 0, x.shape[-2] % 2])


def _add_to_children(x: Tensor, fine: Tensor) -> Tensor:
    """``[B, ceil(H/2), ceil(W/2), dim]``, each copied to its children, plus ``fine`` ``[B, H, W, dim]``."""
    height, width = fine.shape[1:3]
    if torch.compiler.is_exporting():  # has no conditions on free sizes
        for axis, size in ((1, height), (2, width)):
            x = x.index_select(axis, torch.arange(size, device=x.device) // 2)
        return fine + x
    if height % 2 or width % 2:
        return fine + x.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, :height, :width]
    cells = fine.unflatten(1, (-1, 2)).unflatten(3, (-1, 2))  # [B, H/2, 2, W/2, 2, dim]
    return (cells + x[:, :, None, :, None]).view_as(fine)


def _group_norm(norm: nn.GroupNorm, x: Tensor, mask: Tensor | None) -> Tensor:
    """GroupNorm of one group, with statistics over the valid tokens only."""
    if mask is None:
        return norm(x)
    weight = mask[:, None].to(x.dtype)
    count = (weight.sum((1, 2, 3), keepdim=True) * x.shape[1]).clamp(min=1)
    mean = (x * weight).sum((1, 2, 3), keepdim=True) / count
    variance = ((x - mean).square() * weight).sum((1, 2, 3), keepdim=True) / count
    return (x - mean) * (variance + norm.eps).rsqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]


def _hide(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x.masked_fill(~mask[:, None], 0)
