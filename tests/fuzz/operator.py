"""Random calls of the operator's CPU kernels against the reference.

    python -m tests.fuzz operator --seconds 600
    python -m tests.fuzz.operator --count 10000 --seed 0

Which keys a level keeps may hang on the last bit where two score nearly alike. So what the backends keep is compared by its scores, and results are
compared for those queries for which both keep the same.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quadtree_attention import quadtree_attention, token_pyramid

TOLERANCE = {  # of numbers around 1
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}


def random_call(seed: int) -> tuple[list[Tensor], dict[str, Any]]:
    """Query, key and value, and the operator's options."""
    choose, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    axes = choose.randint(1, 3)
    most = {1: 40, 2: 12, 3: 5}[axes]
    grid, key_grid = ([choose.randint(1, most) for _ in range(axes)] for _ in range(2))
    batch, heads = choose.choice([0, 1, 1, 2, 3]), choose.randint(1, 3)
    dim, dim_v = (choose.choice([1, 2, 3, 5, 8, 16, 32]) for _ in range(2))
    dtype = choose.choice([torch.float64, torch.float64, torch.float32, torch.float16, torch.bfloat16])
    levels = choose.randint(1, 4)
    topk = [choose.randint(1, 24) if choose.random() < 0.8 else 10**6 for _ in range(levels - 1)]
    variant = choose.choice("ab")

    def make(shape: list[int], last: int) -> Tensor:
        x = torch.randn(batch, *shape, heads, last, generator=generator, dtype=torch.float64).to(dtype)
        return x.transpose(1, -2).contiguous().transpose(1, -2) if choose.random() < 0.3 else x

    options: dict[str, Any] = dict(levels=levels, topk=topk, variant=variant)
    for name, shape in (("query_mask", grid), ("key_mask", key_grid)):
        if choose.random() < 0.4:
            options[name] = torch.rand(batch, *shape, generator=generator) < choose.choice([0.0, 0.3, 0.9])
    if variant == "b" and choose.random() < 0.5:
        options["level_weights"] = torch.randn(levels, generator=generator, dtype=torch.float64).to(dtype)
    return [make(grid, dim), make(key_grid, dim), make(key_grid, dim_v)], options


def check(seed: int, backend: str = "cpu") -> None:
    """Raise AssertionError unless a backend gives what the reference gives, and for one call in four the same gradients."""
    inputs, options = random_call(seed)
    graded = seed % 4 == 0
    outputs, lists, gradients = [], [], []
    for name in ("reference", backend):
        leaves = [x.detach().requires_grad_(graded) for x in inputs]
        out, kept = quadtree_attention(*leaves, **options, backend=name, return_candidates=True)
        gradients.append(torch.autograd.grad(out.sin().sum(), leaves) if graded else ())
        outputs.append(out.detach())
        lists.append(kept)
    same = _same_kept(*lists, inputs, options) if outputs[0].numel() else torch.ones_like(outputs[0][..., 0]).bool()
    tolerance = TOLERANCE[inputs[0].dtype]
    pairs = [[x[same] for x in outputs]] + ([list(pair) for pair in zip(*gradients, strict=True)] if same.all() else [])
    for one, other in pairs:
        torch.testing.assert_close(
            other, one, rtol=tolerance, atol=tolerance, msg=lambda text: f"seed {seed}: {' '.join(text.split())}"
        )


def _same_kept(ours: list[Tensor], theirs: list[Tensor], inputs: list[Tensor], options: dict[str, Any]) -> Tensor:
    """Bool ``[B, *grid, heads]``: for which queries both lists, each ``[B, *grid_l, heads, K]``, name the same keys at all levels.

    Where they do not, what they name must score alike.
    """
    query = inputs[0]
    grids = [tuple(x.shape[1:-2]) for x in token_pyramid(query, options["levels"])]
    same = torch.ones(query.shape[0], math.prod(grids[0]), query.shape[-2], dtype=torch.bool)
    tables = _scores(inputs[0], inputs[1], options)
    tolerance = 1e-9 if query.dtype == torch.float64 else 1e-4  # kernels compute in float32 or better
    for level, grid in enumerate(grids):
        if level:
            same = same[:, _parents(grid, grids[level - 1])]
        if level == len(grids) - 1:
            break
        one, other = (x[level].flatten(1, -3).sort(-1).values for x in (ours, theirs))  # [B, N, heads, K]
        scores = []
        for kept in (one, other):
            score = tables[level].transpose(1, 2).gather(-1, kept.clamp(min=0)).masked_fill(kept < 0, -1e30)
            scores.append(score.sort(-1).values[same])
        torch.testing.assert_close(*scores, rtol=tolerance, atol=tolerance, msg=lambda text: f"kept keys: {text}")
        same = same & (one == other).all(-1)
    return same.view(query.shape[0], *grids[-1], query.shape[-2])


def _scores(query: Tensor, key: Tensor, options: dict[str, Any]) -> list[Tensor]:
    """What each level but the last orders keys by, of all pairs, ``[B, heads, N_l, M_l]`` float64, by the definition."""
    levels = options["levels"]
    mask = options.get("key_mask")
    queries = token_pyramid(query, levels, mask=options.get("query_mask"))
    keys = token_pyramid(key, levels, mask=mask)
    valid = [torch.ones(key.shape[:-2], dtype=torch.bool).flatten(1) if mask is None else mask.flatten(1)]
    shapes = [[tuple(x.shape[1:-2]) for x in pyramid] for pyramid in (queries, keys)]
    for level in range(levels - 1, 0, -1):
        coarser = torch.zeros(key.shape[0], math.prod(shapes[1][level - 1]), dtype=torch.int64)
        parents = _parents(shapes[1][level], shapes[1][level - 1])
        valid.insert(0, coarser.index_add(1, parents, valid[0].long()) > 0)
    tables: list[Tensor] = []
    for level in range(levels - 1):
        q, k = (x[level].double().flatten(1, -3) for x in (queries, keys))
        table = torch.einsum("bnhd,bmhd->bhnm", q, k) / math.sqrt(q.shape[-1])
        if options["variant"] == "a":
            table = table.masked_fill(~valid[level][:, None, None], -1e30)
            weight = (table - table.amax(-1, keepdim=True)).exp() * valid[level][:, None, None]
            if not level:
                table = weight / weight.sum(-1, keepdim=True).clamp(min=1e-300)
            else:
                above_q, above_k = (_parents(shape[level], shape[level - 1]) for shape in shapes)
                total = torch.zeros(*weight.shape[:-1], valid[level - 1].shape[1], dtype=torch.float64)
                total = total.index_add(-1, above_k, weight).clamp(min=1e-300)
                table = weight / total[..., above_k] * tables[-1][:, :, above_q][..., above_k]
        tables.append(table)
    return tables


def _parents(grid: tuple[int, ...], coarser: tuple[int, ...]) -> Tensor:
    """The row-major place of each cell's parent."""
    return torch.from_numpy(np.ravel_multi_index(list(np.indices(grid).reshape(len(grid), -1) // 2), coarser))


def try_calls(first: int, go_on: Callable[[int], bool]) -> tuple[int, list[str]]:
    """Calls from a seed on, while ``go_on`` of their number says so: how many were tried, and a line for each that differs."""
    wrong, count = [], 0
    while go_on(count):
        try:
            check(first + count)
        except AssertionError as problem:
            wrong.append(f"--case {first + count}: {' '.join(str(problem).split())[:200]}")
        count += 1
    return count, wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz.operator", description="Try random calls of the operator."
    )
    parser.add_argument("--count", type=int, default=10000, help="calls (10000)")
    parser.add_argument("--seed", type=int, default=0, help="of the first; each has the next one (0)")
    options = parser.parse_args()
    begin = time.monotonic()
    count, wrong = try_calls(options.seed, lambda count: count < options.count)
    print(*wrong, sep="\n", end="\n" if wrong else "")
    print(
        f"{count} calls from seed {options.seed} in {time.monotonic() - begin:.0f} s: {len(wrong)} differ from the reference"
    )
    return bool(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
