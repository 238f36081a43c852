"""quadtree_attention(): checks the arguments, builds the levels, runs a backend, and lays the result out on the grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from ..errors import InputError
from . import script
from .dispatch import Backend, Variant, choose
from .tree import Tree, build_tree, build_valid, check_mask, from_tree, level_grids, row_major_index


@overload
def quadtree_attention(
    query: Tensor | Sequence[Tensor],
    key: Tensor | Sequence[Tensor],
    value: Tensor | Sequence[Tensor],
    *,
    topk: int | Sequence[int],
    levels: int | None = None,
    variant: Variant = "b",
    level_weights: Tensor | None = None,
    query_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    backend: Backend | None = None,
    return_candidates: Literal[False] = False,
) -> Tensor: ...


@overload
def quadtree_attention(
    query: Tensor | Sequence[Tensor],
    key: Tensor | Sequence[Tensor],
    value: Tensor | Sequence[Tensor],
    *,
    topk: int | Sequence[int],
    levels: int | None = None,
    variant: Variant = "b",
    level_weights: Tensor | None = None,
    query_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    backend: Backend | None = None,
    return_candidates: Literal[True],
) -> tuple[Tensor, list[Tensor]]: ...


def quadtree_attention(
    query: Tensor | Sequence[Tensor],
    key: Tensor | Sequence[Tensor],
    value: Tensor | Sequence[Tensor],
    *,
    topk: int | Sequence[int],
    levels: int | None = None,
    variant: Variant = "b",
    level_weights: Tensor | None = None,
    query_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    backend: Backend | None = None,
    return_candidates: bool = False,
) -> Tensor | tuple[Tensor, list[Tensor]]:
    """Attention whose cost grows linearly with the number of tokens (QuadTree Attention, Tang et al., ICLR 2022, section 3).

    At the coarsest level every query attends to every key and keeps the ``topk`` best. At each finer level the children of a query attend
    to the children of the keys that it kept. Levels are listed coarse to fine, everywhere.

    Args:
        query, key, value: each either one tensor ``[B, *grid, heads, dim]``, whose pyramid is then built by averaging (``levels`` says
            how many levels unless another one is a sequence), or a sequence of such tensors, coarse to fine, every grid ceil(half) of the next
            finer one. The grid has 1, 2 or 3 axes and any size. Key and value share grids; the query's may differ; ``value`` may have another
            ``dim``.
        topk: how many keys each level passes on to the next: ``levels - 1`` numbers or one for all; clamped to how many there are. Ties go to
            the lower index in tree order.
        levels: number of levels; needed with single tensors (if ``topk`` is a sequence, ``len(topk) + 1`` is the default).
        variant: "b" normalises each level by itself and adds up the levels' messages (equations 5 and 6); "a" passes a key's score down to
            its children, and all scores of a query add up to 1 (equations 3 and 4).
        level_weights: ``[levels]``, multiplies each level's message; for "b" only. None means ones.
        query_mask, key_mask: bool ``[B, *grid]`` of the finest level, True = valid. Invalid keys are never attended, invalid queries give
            zeros, and neither takes part in averages.
        backend: "reference", "cpu" (Numba), "cuda" (Triton), or None for the best one for these tensors.
        return_candidates: also return the keys kept.

    Returns:
        ``[B, *query_grid, heads, dim_v]`` in the input's dtype; sums are in float32 or better. A query with nothing to attend gets zeros. With
        ``return_candidates`` also a list, one int64 ``[B, *query_grid_l, heads, K_l]`` a level but the last: row-major indices into that
        level's key grid of the keys kept, best first, -1 where there were fewer.

    Raises:
        ValueError: shapes, dtypes, devices or options that do not fit; the message says what was expected.
    """
    queries, keys, values, levels = _as_levels(query, key, value, levels, topk)
    topk = _check_topk(topk, levels)
    if variant not in ("a", "b"):
        raise InputError(f"variant is {variant!r}, expected 'a' or 'b'")
    _check_weights(level_weights, levels, variant)
    if torch.jit.is_tracing():
        out, kept = script.attention(
            queries,
            keys,
            values,
            levels,
            topk,
            variant,
            level_weights,
            query_mask,
            key_mask,
            backend,
            return_candidates,
        )
        return (out, kept) if return_candidates else out
    query_grids = _check_pyramid("query", queries, levels)
    key_grids = _check_pyramid("key", keys, levels)
    _check_together(queries, keys, values, query_grids, key_grids, _check_pyramid("value", values, levels))
    batch, device = queries[-1].shape[0], queries[-1].device
    check_mask("query_mask", query_mask, (batch, *query_grids[-1]))
    check_mask("key_mask", key_mask, (batch, *key_grids[-1]))

    query_tree = build_tree(queries, query_grids, build_valid(query_mask, query_grids, batch, device))
    key_valid = build_valid(key_mask, key_grids, batch, device)
    key_tree, value_tree = build_tree(keys, key_grids, key_valid), build_tree(values, key_grids, key_valid)
    tokens = key_tree.tokens[0].shape[2]
    keep = max((min(k, tokens * key_tree.children**level) for level, k in enumerate(topk)), default=0)
    attend = choose(backend, queries[-1], values[-1], keep)
    out, kept = attend(query_tree, key_tree, value_tree, topk, variant, level_weights)
    out = from_tree(out, query_grids[0], levels - 1, query_grids[-1])
    if not return_candidates:
        return out
    return out, [_candidates(kept[level], query_tree, key_tree, level) for level in range(levels - 1)]


def _candidates(kept: Tensor, query: Tree, key: Tree, level: int) -> Tensor:
    """Kept keys ``[B, heads, N, K]`` in tree order to row-major indices ``[B, *query_grid, heads, K]``."""
    index = row_major_index(key.grids[0], level, key.grids[level], kept.device)
    kept = torch.where(kept >= 0, index[kept.clamp(min=0).long()], -1)
    return from_tree(kept, query.grids[0], level, query.grids[level])


def _as_levels(
    query: Tensor | Sequence[Tensor],
    key: Tensor | Sequence[Tensor],
    value: Tensor | Sequence[Tensor],
    levels: int | None,
    topk: int | Sequence[int],
) -> tuple[list[Tensor], list[Tensor], list[Tensor], int]:
    """The levels given for each input, and how many there will be; a single tensor is the finest level alone."""
    given = {"query": query, "key": key, "value": value}
    lists = {name: [x] if isinstance(x, Tensor) else list(x) for name, x in given.items()}
    for name, pyramid in lists.items():
        for level in pyramid:
            if not isinstance(level, Tensor):
                raise InputError(
                    f"{name} holds a {type(level).__name__}, expected a tensor or a sequence of tensors, coarse to fine"
                )
    counts = {name: len(lists[name]) for name, x in given.items() if not isinstance(x, Tensor)}
    if not counts:
        if levels is None:
            if isinstance(topk, int):
                raise InputError("levels is missing: say how many levels to build, for example levels=3")
            levels = len(topk) + 1
        if levels < 1:
            raise InputError(f"levels is {levels}, expected at least 1")
        return lists["query"], lists["key"], lists["value"], levels
    count = min(counts.values())
    if len(set(counts.values())) > 1 or not count:
        raise InputError(f"got {counts} levels, expected the same number, at least one, for each sequence")
    if levels is not None and levels != count:
        raise InputError(f"levels is {levels}, but {count} levels were given; leave levels out for sequences")
    return lists["query"], lists["key"], lists["value"], count


def _check_topk(topk: int | Sequence[int], levels: int) -> tuple[int, ...]:
    topk = (topk,) * (levels - 1) if isinstance(topk, int) else tuple(topk)
    if len(topk) != levels - 1:
        hint = "; drop the last entry of a published list, it has no effect" if len(topk) == levels else ""
        raise InputError(
            f"topk has {len(topk)} entries for {levels} levels, expected {levels - 1}: one for each level but the last{hint}"
        )
    if any(not isinstance(k, int) or k < 1 for k in topk):
        raise InputError(f"topk is {topk}, expected whole numbers of at least 1")
    return topk


def _check_weights(level_weights: Tensor | None, levels: int, variant: Variant) -> None:
    if level_weights is None:
        return
    if variant == "a":
        raise InputError(
            "level_weights is for variant 'b'; variant 'a' has one softmax over all its levels; leave it out"
        )
    if tuple(level_weights.shape) != (levels,):
        raise InputError(
            f"level_weights has shape {tuple(level_weights.shape)}, expected ({levels},): one number per level"
        )


def _check_pyramid(name: str, pyramid: list[Tensor], levels: int) -> list[tuple[int, ...]]:
    """Check one pyramid (or the finest level alone) and return the grids of all levels, coarse to fine."""
    finest = pyramid[-1]
    axes = finest.dim() - 3
    if not 1 <= axes <= 3:
        raise InputError(
            f"{name} has shape {tuple(finest.shape)}, expected [B, *grid, heads, dim] with a grid of 1, 2 or 3 axes"
        )
    if not finest.is_floating_point():
        raise InputError(
            f"{name} has dtype {finest.dtype}, expected a floating-point one; convert it with {name}.float()"
        )
    if any(size == 0 for size in finest.shape[1:]):
        raise InputError(f"{name} has shape {tuple(finest.shape)}, expected at least one token, head and channel")
    grids = level_grids(finest.shape[1 : axes + 1], levels)
    for level, x in enumerate(pyramid):
        want = (finest.shape[0], *grids[level - len(pyramid)], *finest.shape[-2:])
        if tuple(x.shape) != want:
            raise InputError(
                f"{name} level {level} has shape {tuple(x.shape)}, expected {want}: levels go coarse to fine, "
                "each grid ceil(half) of the next; token_pyramid builds such levels"
            )
        if x.dtype != finest.dtype or x.device != finest.device:
            raise InputError(
                f"{name} level {level} is {x.dtype} on {x.device}, expected {finest.dtype} on {finest.device} as the finest level"
            )
    return grids


def _check_together(
    queries: list[Tensor],
    keys: list[Tensor],
    values: list[Tensor],
    query_grids: list[tuple[int, ...]],
    key_grids: list[tuple[int, ...]],
    value_grids: list[tuple[int, ...]],
) -> None:
    query, key, value = queries[-1], keys[-1], values[-1]
    if key_grids != value_grids:
        raise InputError(f"value has grid {value_grids[-1]}, expected the key's, {key_grids[-1]}")
    if len(query_grids[-1]) != len(key_grids[-1]):
        raise InputError(
            f"query has {len(query_grids[-1])} grid axes and key {len(key_grids[-1])}, expected the same number"
        )
    for name, x in (("key", key), ("value", value)):
        if x.shape[0] != query.shape[0] or x.shape[-2] != query.shape[-2]:
            raise InputError(
                f"{name} has batch {x.shape[0]} and {x.shape[-2]} heads, expected the query's {query.shape[0]} and {query.shape[-2]}"
            )
        if x.dtype != query.dtype or x.device != query.device:
            raise InputError(f"{name} is {x.dtype} on {x.device}, expected the query's {query.dtype} on {query.device}")
    if key.shape[-1] != query.shape[-1]:
        raise InputError(f"key has dim {key.shape[-1]}, expected the query's {query.shape[-1]}")
