"""Where quadtree attention looks: `record_attention` keeps what attention is computed from, and the path of any query follows from it.

The keys that a query keeps are the operator's own, of the very call that is recorded. Its scores are not: no backend stores more of them than it
needs. Those of one query are a few hundred dot products, and are computed when a path is asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..ops import quadtree_attention, token_pyramid
from ..ops.dispatch import Variant
from .base import sum_dtype

_MARK = "_attention_calls"  # of a module that is being recorded: where its calls go


@dataclass(frozen=True, eq=False)
class PathLevel:
    """One level of an `AttentionPath`.

    query: cell of the query in its grid at this level, the ancestor of the query asked for; query_grid, key_grid: sizes of both grids.
    candidates: int64 ``[heads, M]``, row-major cells of the key grid that were compared with the query; -1 where a head had fewer.
    scores: float32 ``[heads, M]``, shares of attention as the operator has them, 0 where there is no candidate. Variant "b": those of a head sum to
    1 at each level. "a": a key's share is split among its children.
    valid: bool ``[*key_grid]``, the keys that there are.
    kept: bool ``[heads, M]``, whether the next level looks into the candidate; all False at the finest level.
    weight: what this level's message is multiplied with; 1 with variant "a".
    """

    query: tuple[int, ...]
    query_grid: tuple[int, ...]
    key_grid: tuple[int, ...]
    candidates: Tensor
    scores: Tensor
    kept: Tensor
    valid: Tensor
    weight: float

    def score_map(self, head: int | None = None) -> Tensor:
        """Scores ``[*key_grid]`` of a head, or the mean of all; NaN where no key was compared with the query."""
        heads = range(len(self.scores)) if head is None else [head]
        total = torch.zeros(_product(self.key_grid))
        seen = torch.zeros(_product(self.key_grid), dtype=torch.bool)
        for n in heads:
            valid = self.candidates[n] >= 0
            places = self.candidates[n][valid]
            total.index_add_(0, places, self.scores[n][valid] / len(heads))
            seen[places] = True
        return total.masked_fill(~seen, torch.nan).view(self.key_grid)

    def kept_map(self, head: int | None = None) -> Tensor:
        """Share of the heads that keep each key, float32 ``[*key_grid]``; of one head 0 or 1."""
        heads = range(len(self.scores)) if head is None else [head]
        count = torch.zeros(_product(self.key_grid))
        for n in heads:
            count[self.candidates[n][self.kept[n]]] += 1 / len(heads)
        return count.view(self.key_grid)


@dataclass(frozen=True, eq=False)
class AttentionPath:
    """What one query looks at, level by level, coarse to fine.

    levels: one `PathLevel` a level; variant: "a" or "b"; computed: scores that the operator computes for this query, mean of the heads; dense: scores
    that dense attention would compute for it, one for each key.
    """

    levels: tuple[PathLevel, ...]
    variant: Variant
    computed: float
    dense: int

    @property
    def heads(self) -> int:
        """Number of heads."""
        return len(self.levels[0].scores)

    def attention_map(self, head: int | None = None) -> Tensor:
        """What reaches each key of the finest grid, float32 ``[*key_grid]``: scores times the level's weight, spread evenly over what a coarse key
        stands for. With variant "a" keys that are looked into hand their share on, so that the map sums to 1.
        """
        total: Any = None
        for depth, level in enumerate(self.levels):
            looked_into = self.variant == "a" and depth < len(self.levels) - 1
            here = level.weight * (_without_kept(level, head) if looked_into else level.score_map(head).nan_to_num(0.0))
            total = here if total is None else here + _to_children(total, level.valid)
        return total


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One call of one attention module, as `record_attention` keeps it.

    module: its name in the network; number: which call of that module it was, from 0. queries, keys: pyramids, coarse to fine, one
    ``[B, *grid_l, heads, dim]`` a level; valid: one bool ``[B, *key_grid_l]`` a level, None where all keys are valid; kept: the operator's
    candidates, one int64 ``[B, *query_grid_l, heads, K_l]`` a level but the last; weights: ``[levels]`` or None.
    """

    module: str
    number: int
    variant: Variant
    queries: list[Tensor]
    keys: list[Tensor]
    valid: list[Tensor] | None
    kept: list[Tensor]
    weights: Tensor | None

    @property
    def query_grid(self) -> tuple[int, ...]:
        """The finest grid of queries."""
        return tuple(self.queries[-1].shape[1:-2])

    @property
    def key_grid(self) -> tuple[int, ...]:
        """The finest grid of keys."""
        return tuple(self.keys[-1].shape[1:-2])

    @property
    def batch(self) -> int:
        """Entries of the batch; in stereo, rows."""
        return self.queries[-1].shape[0]

    def path(self, query: Sequence[int], *, batch: int = 0) -> AttentionPath:
        """What a query of the finest grid looks at.

        Args:
            query: its cell, an index for each axis: (row, column) in 2-D.
            batch: entry of the batch.

        Raises:
            ValueError: a cell or entry that is not there.
        """
        cell = tuple(int(index) for index in query)
        grid = self.query_grid
        if len(cell) != len(grid) or any(not 0 <= index < size for index, size in zip(cell, grid, strict=True)):
            raise InputError(f"query is {cell}, expected a cell of the grid {grid}, counted from 0")
        if not 0 <= batch < self.batch:
            raise InputError(f"batch is {batch}, expected 0 to {self.batch - 1}")
        count = len(self.queries)
        weights = [1.0] * count if self.weights is None else self.weights.tolist()
        found: list[PathLevel] = []
        candidates: Tensor | None = None  # [heads, M]
        above: Tensor | None = None  # variant "a": scores of the keys looked into, [heads, K]
        computed = 0.0
        for level in range(count):
            place = tuple(index >> (count - 1 - level) for index in cell)
            entry = (batch, *place)
            q, k = sum_dtype(self.queries[level][entry]), sum_dtype(self.keys[level][batch])
            k_grid = tuple(k.shape[:-2])
            k = k.flatten(0, -3).transpose(0, 1)  # [heads, N, dim]
            if candidates is None:
                candidates = torch.arange(k.shape[1], device=k.device).expand(k.shape[0], -1)
            valid = torch.ones(k_grid, dtype=torch.bool) if self.valid is None else self.valid[level][batch].cpu()
            if self.valid is not None:
                ok = self.valid[level][batch].flatten()
                candidates = torch.where((candidates >= 0) & ok[candidates.clamp(min=0)], candidates, -1)
            there = candidates >= 0
            rows = candidates.clamp(min=0)
            gathered = k.gather(1, rows[..., None].expand(-1, -1, k.shape[-1]))  # [heads, M, dim]
            logits = (gathered @ q[..., None])[..., 0] * q.shape[-1] ** -0.5
            scores = _scores(logits, there, above, 2 ** len(grid))
            kept = self.kept[level][entry] if level < count - 1 else candidates.new_empty(len(candidates), 0)
            matches = (candidates[..., None] == kept[:, None]) & there[..., None]  # [heads, M, K]
            computed += float(there.sum()) / len(there)
            found.append(
                PathLevel(
                    place,
                    tuple(self.queries[level].shape[1:-2]),
                    k_grid,
                    candidates.cpu(),
                    scores.float().cpu(),
                    matches.any(-1).cpu(),
                    valid,
                    float(weights[level]),
                )
            )
            if level < count - 1:
                above = (scores[..., None] * matches).sum(1) if self.variant == "a" else None
                candidates = _children(kept, k_grid, tuple(self.keys[level + 1].shape[1:-2]))
        return AttentionPath(tuple(found), self.variant, computed, _product(self.key_grid))

    def cost(self) -> tuple[int, int]:
        """Scores that the whole call computes, all queries and heads together, and that dense attention would compute."""
        heads = self.queries[-1].shape[-2]
        computed = self.batch * heads * _product(self.queries[0].shape[1:-2]) * _product(self.keys[0].shape[1:-2])
        for level, kept in enumerate(self.kept):
            device = kept.device
            q_children = _child_counts(
                tuple(self.queries[level].shape[1:-2]), tuple(self.queries[level + 1].shape[1:-2])
            )
            k_children = _child_counts(tuple(self.keys[level].shape[1:-2]), tuple(self.keys[level + 1].shape[1:-2]))
            looked = torch.where(kept >= 0, k_children.to(device).flatten()[kept.clamp(min=0)], 0).sum((-1, -2))
            computed += int((looked * q_children.to(device)).sum())
        return computed, self.batch * heads * _product(self.query_grid) * _product(self.key_grid)


@contextmanager
def record_attention(model: nn.Module, modules: Collection[str] | None = None) -> Iterator[list[AttentionCall]]:
    """Inside, keep every call of quadtree attention in a network; each has the `AttentionCall.path` of any of its queries.

    >>> with record_attention(model) as paths:
    ...     model(image)
    >>> paths[0].path((12, 30)).levels[0].kept

    What is kept stays in memory as long as the list: per call the projected queries and keys, and the numbers of the keys that were kept.

    Args:
        model: any network with `QuadtreeAttention` in it, or one itself; matchers, stereo networks and backbones of this package.
        modules: names of the attention modules to record, as `attention_modules` has them; None: all.

    Raises:
        ValueError: a network without quadtree attention, a name that it does not have, or one that is being recorded already.
    """
    known = attention_modules(model)
    if not known:
        raise InputError(
            f"{type(model).__name__} has no quadtree attention, expected a network with QuadtreeAttention in it"
        )
    for name in modules or ():
        if name not in known:
            raise InputError(
                f"module {name!r} is no quadtree attention of this network, expected one of {', '.join(known)}"
            )
    chosen = {name: part for name, part in known.items() if modules is None or name in modules}
    if any(hasattr(part, _MARK) for part in chosen.values()):
        raise InputError("this network is being recorded already; leave the other record_attention first")
    calls: list[AttentionCall] = []
    try:
        for name, part in chosen.items():
            part.__dict__[_MARK] = (name, calls)
        yield calls
    finally:
        for part in chosen.values():
            part.__dict__.pop(_MARK, None)


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of a network that `record_attention` records, by name, in the order in which they stand in it."""
    return {name: part for name, part in model.named_modules() if getattr(part, "uses_quadtree", False)}


def recorded_attention(
    module: nn.Module,
    query: Tensor | Sequence[Tensor],
    key: Tensor | Sequence[Tensor],
    value: Tensor | Sequence[Tensor],
    *,
    levels: int,
    variant: Variant = "b",
    level_weights: Tensor | None = None,
    query_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """`quadtree_attention` for a module of a network, kept if that is being recorded. Arguments as there."""
    shared = dict(variant=variant, level_weights=level_weights, query_mask=query_mask, key_mask=key_mask, **options)
    mark = getattr(module, _MARK, None)
    if mark is None:
        return quadtree_attention(query, key, value, levels=levels, **shared)
    name, calls = mark
    # Built here and handed on, so that what is kept is what the operator sees.
    queries = token_pyramid(query, levels, mask=query_mask) if isinstance(query, Tensor) else list(query)
    keys = token_pyramid(key, levels, mask=key_mask) if isinstance(key, Tensor) else list(key)
    out, kept = quadtree_attention(queries, keys, value, levels=levels, return_candidates=True, **shared)
    valid = None
    if key_mask is not None:
        valid = [level[..., 0] > 0 for level in token_pyramid(key_mask[..., None].float(), levels, mask=key_mask)]
    weights = None if level_weights is None else level_weights.detach().float().cpu()
    number = sum(call.module == name for call in calls)
    queries, keys = ([x.detach() for x in pyramid] for pyramid in (queries, keys))
    calls.append(AttentionCall(name, number, variant, queries, keys, valid, kept, weights))
    return out


def _scores(logits: Tensor, there: Tensor, above: Tensor | None, children: int) -> Tensor:
    """Shares ``[heads, M]`` of logits ``[heads, M]``: a softmax, or among siblings and times the share of their parent, ``above`` ``[heads, K]``."""
    if above is not None:
        logits, there = logits.unflatten(-1, (-1, children)), there.unflatten(-1, (-1, children))
    scores = logits.masked_fill(~there, torch.finfo(logits.dtype).min).softmax(-1) * there
    return scores if above is None else (scores * above[..., None]).flatten(-2)


def _children(kept: Tensor, grid: tuple[int, ...], finer: tuple[int, ...]) -> Tensor:
    """Row-major cells ``[heads, K * F]`` of the finer grid that are children of cells ``[heads, K]``; -1 for those beyond its edge."""
    there, rest, places = kept >= 0, kept.clamp(min=0), []
    for size in reversed(grid):
        places.append(rest % size)
        rest = rest // size
    found = torch.zeros_like(kept)[..., None]
    ok = there[..., None]
    for place, size in zip(reversed(places), finer, strict=True):
        step = 2 * place[..., None] + torch.arange(2, device=kept.device)  # [heads, K, 2]
        found = (found[..., None] * size + step[:, :, None]).flatten(-2)
        ok = (ok[..., None] & (step < size)[:, :, None]).flatten(-2)
    return torch.where(ok, found, -1).flatten(-2)


def _child_counts(grid: tuple[int, ...], finer: tuple[int, ...]) -> Tensor:
    """How many cells of the finer grid each cell has as children, int64 ``[*grid]``."""
    counts = torch.ones((), dtype=torch.int64)
    for size, fine in zip(grid, finer, strict=True):
        counts = counts[..., None] * (fine - 2 * torch.arange(size)).clamp(max=2)
    return counts


def _without_kept(level: PathLevel, head: int | None) -> Tensor:
    """`PathLevel.score_map`, with 0 for each head where it looks into the key."""
    heads = range(len(level.scores)) if head is None else [head]
    total = torch.zeros(_product(level.key_grid))
    for n in heads:
        rows = (level.candidates[n] >= 0) & ~level.kept[n]
        total.index_add_(0, level.candidates[n][rows], level.scores[n][rows] / len(heads))
    return total.view(level.key_grid)


def _to_children(scores: Tensor, valid: Tensor) -> Tensor:
    """Scores of a grid shared out among the children that are there, ``valid`` bool ``[*finer_grid]``: what a mean over these takes from each."""
    parent = torch.zeros((), dtype=torch.int64)
    for coarse, size in zip(scores.shape, valid.shape, strict=True):
        parent = parent[..., None] * coarse + torch.arange(size) // 2
    counts = torch.bincount(parent.flatten(), valid.flatten().float(), minlength=scores.numel())
    return scores.flatten()[parent] * valid / counts.clamp(min=1)[parent]


def _product(sizes: Sequence[int]) -> int:
    result = 1
    for size in sizes:
        result *= int(size)
    return result
