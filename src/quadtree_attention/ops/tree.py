"""Grids and tree order, in 1-D, 2-D and 3-D alike.

A tree over a token grid has levels, listed coarse to fine; each grid is ceil(half) of the next finer one in every axis. Its tokens stand
in *tree order*: the coarsest grid row-major and, inside each of its cells, children after one another, recursively (Z-order). The children
of token ``i`` are then ``F*i ... F*i + F-1`` at the next level, with ``F = 2**axes``: pooling is a mean over consecutive tokens, and
descending needs no coordinates. Grids that do not divide are padded at the end of each axis, and the padding is marked as invalid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from .memory import contiguous, empty
from .modes import is_eager, is_transformed

FEW = 2**16  # lists of rows that are cached: a backbone needs ten for each image size
GATHERED = 2**21  # tokens times heads up to which the order is cached as a list of rows


def level_grids(grid: Sequence[int], levels: int) -> list[tuple[int, ...]]:
    """Grids of all levels, coarse to fine, of a tree whose finest grid is ``grid``."""
    grids = [tuple(grid)]
    for _ in range(levels - 1):
        grids.append(tuple((size + 1) // 2 for size in grids[-1]))
    return grids[::-1]


def _tree_permutation(axes: int, level: int) -> list[int]:
    """Order of the dimensions [axis 0: root, bits 1..level][axis 1: ...]... that makes roots and then each level's bits adjacent."""
    per_axis = level + 1
    return [axis * per_axis + bit for bit in range(per_axis) for axis in range(axes)]


def to_tree(x: Tensor, root_grid: Sequence[int], level: int) -> Tensor:
    """Lay out one level in tree order, heads in front, padded with zeros.

    x: ``[B, *grid, heads, dim]``, with ``grid`` at most ``root_grid * 2**level``. Returns ``[B, heads, N, dim]`` with
    ``N = prod(root_grid) * F**level``.
    """
    axes = len(root_grid)
    full = [root * 2**level for root in root_grid]
    if torch.compiler.is_exporting():
        for axis, want in enumerate(full, 1):
            x = stretch(x, axis, want)
    elif list(x.shape[1:-2]) != full:
        pad = [0, 0, 0, 0]
        for have, want in zip(reversed(x.shape[1:-2]), reversed(full), strict=True):
            pad += [0, want - have]
        x = F.pad(x, pad)
    batch, heads, dim = x.shape[0], x.shape[-2], x.shape[-1]
    if axes > 1 and _by_rows(x):
        there, back = _tree_rows(tuple(root_grid), level, heads)
        return _Reordered.apply(x.flatten(1, -2), there, back).view(batch, heads, _product(full), dim)
    split: list[int] = []
    for root in root_grid:
        split += [root] + [2] * level  # [root, bit 1, ..., bit level] of one axis
    order = _tree_permutation(axes, level)
    x = x.reshape(batch, *split, heads, dim).permute(0, 1 + len(order), *(1 + d for d in order), 2 + len(order))
    return contiguous(x).reshape(batch, heads, _product(full), dim)


def _by_rows(x: Tensor) -> bool:
    """Whether ``x`` can be reordered as rows of ``dim`` numbers, which in 2-D and 3-D is five times as fast as permuted copies."""
    return is_eager(x) and x.is_contiguous() and x[:1, ..., 0].numel() <= GATHERED


class _Reordered(torch.autograd.Function):
    """Rows of each entry of a batch, ``[B, rows, dim]``, in the order ``there``; ``back`` is the inverse."""

    @staticmethod
    def forward(ctx, x: Tensor, there: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(there, back)
        out = empty(tuple(x.shape), x)
        for source, target in zip(x, out, strict=True):
            torch.index_select(source, 0, there, out=target)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        there, back = ctx.saved_tensors
        if is_eager(grad) and not is_transformed(grad):
            return _Reordered.apply(grad.contiguous(), back, there), None, None
        return grad.index_select(1, back), None, None  # a batch of gradients at once, or forward over reverse


def _tree_rows(root_grid: tuple[int, ...], level: int, heads: int) -> tuple[Tensor, Tensor]:
    """Rows of ``[*grid, heads]``, flat, in the order of ``[heads, N]`` in tree order, and the inverse."""
    few = heads * _product(root_grid) * 2 ** (level * len(root_grid)) <= FEW
    return (_few_rows if few else _many_rows)(root_grid, level, heads)


def _make_rows(root_grid: tuple[int, ...], level: int, heads: int) -> tuple[Tensor, Tensor]:
    full = [root * 2**level for root in root_grid]
    with (
        torch.inference_mode(False),
        torch.device("cpu"),
    ):  # whatever mode and default device are when it is first called: it is kept
        token = torch.arange(_product(full)).view(1, *full, 1, 1)
        there = (to_tree(token, root_grid, level)[0, 0, :, 0] * heads + torch.arange(heads)[:, None]).flatten()
        back = torch.empty_like(there)
        back[there] = torch.arange(len(there))
        return there.int(), back.int()


_few_rows, _many_rows = lru_cache(maxsize=128)(_make_rows), lru_cache(maxsize=8)(_make_rows)


def stretch(x: Tensor, axis: int, size: int) -> Tensor:
    """Pad the end of an axis with zeros; unlike F.pad, it has no conditions on free sizes, so exported graphs hold for all of them."""
    place = torch.arange(size, device=x.device)
    inside = (place < x.shape[axis]).reshape(-1, *[1] * (x.dim() - axis - 1))
    x = x.index_select(axis, place.clamp(max=x.shape[axis] - 1))
    return x & inside if x.dtype == torch.bool else torch.where(inside, x, x.new_zeros(()))


def from_tree(x: Tensor, root_grid: Sequence[int], level: int, grid: Sequence[int]) -> Tensor:
    """Inverse of `to_tree`: ``[B, heads, N, dim]`` to ``[B, *grid, heads, dim]``, the padding dropped."""
    axes = len(root_grid)
    batch, heads, _, dim = x.shape
    full = [root * 2**level for root in root_grid]
    if axes > 1 and _by_rows(x):
        there, back = _tree_rows(tuple(root_grid), level, heads)
        x = _Reordered.apply(x.flatten(1, 2), back, there).view(batch, *full, heads, dim)
    else:
        order = _tree_permutation(axes, level)
        # Roots first, then the bits of level 1, level 2, ...
        split = [root_grid[i] if i < axes else 2 for i in range(len(order))]
        inverse = sorted(range(len(order)), key=order.__getitem__)
        x = x.reshape(batch, heads, *split, dim).permute(0, *(2 + d for d in inverse), 1, 2 + len(order))
        x = contiguous(x).reshape(batch, *full, heads, dim)
    if torch.compiler.is_exporting():
        for axis, size in enumerate(grid, 1):
            x = x.index_select(axis, torch.arange(size, device=x.device))
    elif tuple(x.shape[1:-2]) != tuple(grid):
        for axis, size in enumerate(grid, 1):
            x = x.narrow(axis, 0, size)
    return x


def row_major_index(root_grid: Sequence[int], level: int, grid: Sequence[int], device: torch.device) -> Tensor:
    """``[N]`` int64: the row-major index in ``grid`` of each token in tree order, -1 for padding."""
    index = torch.arange(1, _product(grid) + 1, device=device).reshape(1, *grid, 1, 1)
    return to_tree(index, root_grid, level).flatten() - 1


@dataclass
class Tree:
    """Tokens of all levels in tree order, coarse to fine.

    tokens: one ``[B, heads, N_l, dim]`` a level; valid: one bool ``[B, N_l]`` a level, or None where every token is valid;
    grids: the unpadded grid of each level.
    """

    tokens: list[Tensor]
    valid: list[Tensor] | None
    grids: list[tuple[int, ...]]

    @property
    def children(self) -> int:
        """Children of a token, 2**axes."""
        return 2 ** len(self.grids[0])


def pool(x: Tensor, children: int, valid: Tensor | None = None) -> Tensor:
    """Mean over each parent's valid children, in tree order; zero where there are none. Sums are in float32 or better.

    x: ``[B, heads, N, dim]``, valid: bool ``[B, N]`` or None. Returns ``[B, heads, N / children, dim]``.
    """
    grouped = x.unflatten(2, (-1, children))
    wide = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    if valid is None:
        return grouped.mean(3, dtype=wide).to(x.dtype)
    weight = valid.unflatten(1, (-1, children))[:, None, :, :, None]
    total = grouped.masked_fill(~weight, 0).sum(3, dtype=wide)
    return (total / weight.sum(3).clamp(min=1)).to(x.dtype)


def build_valid(
    mask: Tensor | None, grids: Sequence[tuple[int, ...]], batch: int, device: torch.device
) -> list[Tensor] | None:
    """Validity of all levels in tree order, coarse to fine; None where neither mask nor padding makes any token invalid."""
    root, levels = grids[0], len(grids)
    if mask is None:
        if not torch.compiler.is_exporting() and tuple(size * 2 ** (levels - 1) for size in root) == tuple(grids[-1]):
            return None
        mask = torch.ones(1, *grids[-1], dtype=torch.bool, device=device).expand(batch, *grids[-1])
    valid = [to_tree(mask[..., None, None], root, levels - 1)[:, 0, :, 0]]
    for _ in range(levels - 1):
        valid.append(valid[-1].unflatten(1, (-1, 2 ** len(root))).any(2))
    return valid[::-1]


def build_tree(levels: Sequence[Tensor], grids: Sequence[tuple[int, ...]], valid: list[Tensor] | None) -> Tree:
    """Lay out tokens in tree order.

    levels: either the finest level alone (coarser ones are then averaged) or one ``[B, *grid_l, heads, dim]`` a level, coarse to fine.
    """
    root, count = grids[0], len(grids)
    if len(levels) == count:
        return Tree([to_tree(x, root, level) for level, x in enumerate(levels)], valid, list(grids))
    finest = to_tree(levels[-1], root, count - 1)
    if valid is None and is_eager(finest):
        return Tree(list(_Pyramid.apply(finest, count, 2 ** len(root))), None, list(grids))
    tokens = [finest]
    for level in range(count - 1, 0, -1):
        tokens.append(pool(tokens[-1], 2 ** len(root), valid[level] if valid is not None else None))
    return Tree(tokens[::-1], valid, list(grids))


class _Pyramid(torch.autograd.Function):
    """``count`` levels, coarse to fine, of means of ``children`` consecutive tokens; ``x`` ``[B, heads, N, dim]`` is the last of them.

    The same as `pool` level by level, but the backward pass sums the gradients of all levels in one pass each.
    """

    @staticmethod
    def forward(ctx, x: Tensor, count: int, children: int) -> tuple[Tensor, ...]:
        ctx.children = children
        tokens = [x.view_as(x)]
        for _ in range(count - 1):
            tokens.append(pool(tokens[-1], children))
        return tuple(tokens[::-1])

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, None, None]:
        total = grads[0]
        for grad in grads[1:]:
            share = (total / ctx.children).unsqueeze(3)
            grad = grad.unflatten(2, (-1, ctx.children))
            if torch.is_grad_enabled() or not is_eager(grad) or is_transformed(grad):
                total = (grad + share).flatten(2, 3)
            else:
                total = torch.add(grad, share, out=empty(tuple(grad.shape), grad)).flatten(2, 3)
        return total, None, None


def token_pyramid(x: Tensor, levels: int, *, mask: Tensor | None = None) -> list[Tensor]:
    """Pyramid of averages of a token grid, coarse to fine; the last entry is ``x`` itself.

    A parent is the mean of its valid children, level by level: plain 2x2 averaging (in 2-D) where sizes divide, without bias towards zero
    where they do not. Section 3.1 of the paper.

    Args:
        x: ``[B, *grid, heads, dim]`` or ``[B, *grid, dim]``; ``grid`` of 1 to 3 axes. Without a mask, the grid is taken to be all
            dimensions but the first and the last two.
        levels: number of levels, at least 1.
        mask: bool ``[B, *grid]``, True = valid; says how many axes the grid has. Invalid tokens are left out of every mean.

    Returns:
        ``levels`` tensors ``[B, *grid_l, ...]``, each grid ceil(half) of the next finer one in every axis.

    Raises:
        ValueError: levels below 1, a grid of no or more than three axes, a mask that does not fit.
    """
    if levels < 1:
        raise InputError(f"token_pyramid: levels is {levels}, expected at least 1")
    axes = mask.dim() - 1 if mask is not None else x.dim() - 3
    if not 1 <= axes <= 3:
        raise InputError(
            f"token_pyramid: x has shape {tuple(x.shape)}, expected [B, *grid, heads, dim] with a grid of 1 to 3 axes; "
            "for [B, *grid, dim] pass a mask, which tells the axes, or x.unsqueeze(-2)"
        )
    check_mask("mask", mask, x.shape[: axes + 1])
    grids = level_grids(x.shape[1 : axes + 1], levels)
    valid = build_valid(mask, grids, x.shape[0], x.device)
    shape = x.shape[axes + 1 :]
    if axes == 1 and valid is None:  # a row is in tree order as it is
        rows = [x.flatten(2).unsqueeze(1)]
        for _ in range(levels - 1):
            rows.append(pool(rows[-1], 2))
        return [*(level.view(x.shape[0], level.shape[2], *shape) for level in rows[:0:-1]), x]
    tree = build_tree([x.unsqueeze(-2).flatten(axes + 1, -2)], grids, valid)
    coarser = [from_tree(tokens, grids[0], level, grids[level]) for level, tokens in enumerate(tree.tokens[:-1])]
    return [*(level.reshape(*level.shape[: axes + 1], *shape) for level in coarser), x]


def kept_counts(topk: list[int], keys: int, children: int) -> list[int]:
    """How many keys each level keeps: topk clamped to how many candidates there are; 0 for the last."""
    counts: list[int] = []
    for k in topk[:-1]:
        counts.append(min(k, counts[-1] * children if counts else keys))
    return [*counts, 0]


def check_mask(name: str, mask: Tensor | None, shape: Sequence[int]) -> None:
    """Raise ValueError unless ``mask`` is None or a bool tensor of ``shape``."""
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise InputError(
            f"{name} has dtype {mask.dtype}, expected torch.bool with True = valid; convert it with mask.bool()"
        )
    if tuple(mask.shape) != tuple(shape):
        raise InputError(
            f"{name} has shape {tuple(mask.shape)}, expected {tuple(shape)}: [B, *grid] of the finest level"
        )


def _product(sizes: Sequence[int]) -> int:
    result = 1
    for size in sizes:
        result = result * size
    return result
