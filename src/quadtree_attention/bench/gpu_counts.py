"""Counts the bytes and operations that quadtree attention needs on a GPU, level by level, and the time at the GPU's peak rates.

These are counts, not measurements: what the kernels of the "cuda" backend read, write and multiply, computed from the sizes alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..table import Table
from .cpu import Case

ROOT_BLOCK = 16  # queries of the coarsest level that read each key together, and 32 keys that read each query
CHILDREN = 4
SORT_PASSES = 4  # of 8 bits each, over the 32-bit keys of the list of queries by key


@dataclass(frozen=True)
class Device:
    """Peak rates per second: bytes from memory and from the L2 cache, operations of bf16 tensor cores and exponentials."""

    name: str
    memory: float
    cache: float
    tensor: float
    exponentials: float


# Memory and tensor rates as NVIDIA states them (SXM, dense). The cache's is no official figure: 5.5 TB/s is what public microbenchmarks report.
# Exponentials: 16 a clock and multiprocessor, 132 of them at 1.75 GHz.
DEVICES = (Device("H100", 3.35e12, 5.5e12, 989e12, 3.7e12), Device("H200", 4.8e12, 5.5e12, 989e12, 3.7e12))


def dense_operations(case: Case) -> float:
    """Operations of the forward pass of dense attention: two products of ``dim`` for each pair of tokens."""
    return 4.0 * case.batch * case.heads * case.tokens**2 * case.dim


def counts(case: Case) -> list[dict[str, Any]]:
    """A row for each pass and part: MB that must pass through memory ("MB, HBM": each tensor once for each kernel that uses it), MB that the kernels
    gather (from the caches where they hold them), and GFLOP of matrix products."""
    size = case.dtype.itemsize
    rows = [
        case.heads * case.batch * case.tokens // CHILDREN ** (case.levels - 1 - level) for level in range(case.levels)
    ]
    row = case.dim * size  # bytes of one token of one head
    finest, pooled = rows[-1], sum(rows[:-1])
    tree = 2 * row * (3 * finest) + 3 * row * (CHILDREN * pooled + pooled) + 2 * row * finest
    made = [
        {"pass": "forward", "part": "tree order and averages, in and out", "MB, HBM": tree, "MB, gathered": 0, "GFLOP": 0},
        {"pass": "backward", "part": "tree order and averages, in and out", "MB, HBM": tree, "MB, gathered": 0, "GFLOP": 0},
    ]  # fmt: skip
    kept = [min(k, rows[0] // (case.heads * case.batch) * CHILDREN**level) for level, k in enumerate(case.topk)]
    for level, n in enumerate(rows):
        last = level == case.levels - 1
        tokens = n // (case.heads * case.batch)
        wide = row if last else 4 * case.dim  # bytes of a row of messages or of their gradients: float32 between levels
        if level == 0:
            pairs, handed = n * tokens, 0
            gathered = n // ROOT_BLOCK * tokens * 2 * row
            by_key = n // 32 * tokens * (row + wide)
        else:
            slots = kept[level - 1]
            pairs, handed = n * CHILDREN * slots, n // CHILDREN * slots
            gathered = handed * CHILDREN * 2 * row
            by_key = handed * (CHILDREN * (row + wide + 8) + 8)
        above = n // CHILDREN * 4 * case.dim if level else 0
        forward = n * (3 * row + wide + 4) + above + 4 * handed + (0 if last else 4 * n * kept[level])
        query = n * (4 * row + wide + 8) + 4 * handed
        key = n * (5 * row + wide + 8) + 8 * handed
        sort = handed * (4 + 4 + 2 * SORT_PASSES * 12)
        product = 2.0 * pairs * case.dim
        name = "coarsest level" if level == 0 else f"level {level}"
        for what, part, memory, from_cache, products in (
            ("forward", name, forward, gathered, 2),
            ("backward", f"{name}, by query", query, gathered, 3),
            ("backward", f"{name}, sort", sort, 0, 0),
            ("backward", f"{name}, by key", key, by_key, 4),
        ):
            if memory:
                made.append(
                    {
                        "pass": what,
                        "part": part,
                        "MB, HBM": memory,
                        "MB, gathered": from_cache,
                        "GFLOP": products * product,
                    }
                )
    made.sort(key=lambda one: one["pass"] != "forward")
    units = {"MB, HBM": 1e6, "MB, gathered": 1e6, "GFLOP": 1e9}
    return [{name: value / units[name] if name in units else value for name, value in one.items()} for one in made]


def seconds(row: dict[str, Any], device: Device) -> float:
    """The least time of one row of `counts`: by memory, by the cache, or by tensor cores that work on 4 queries of 16 places.

    Selection, exponentials and launches do not count, so the real time is longer."""
    filled = ROOT_BLOCK if "coarsest" in row["part"] else CHILDREN
    return max(
        row["MB, HBM"] * 1e6 / device.memory,
        row["MB, gathered"] * 1e6 / device.cache,
        row["GFLOP"] * 1e9 * ROOT_BLOCK / filled / device.tensor,
    )


def predicted(cases: Sequence[Case], share: float = 0.65) -> tuple[Table, Table]:
    """The rows of `counts` of all cases with the least time on each device, and their sums beside those of dense attention.

    Dense attention is given ``share`` of the peak of the tensor cores, and at least the time of its exponentials; its backward pass 2.5 times
    the operations and as many exponentials again.
    """
    parts, sums = [], []
    for case in cases:
        size = f"{case.grid[0]}x{case.grid[1]}"
        rows = counts(case)
        parts += [{"tokens": size, **row, **{f"us, {d.name}": 1e6 * seconds(row, d) for d in DEVICES}} for row in rows]
        pairs = dense_operations(case) / 4 / case.dim
        for what, operations, exponentials in (("forward", 1, 1), ("forward+backward", 3.5, 2)):
            mine = [row for row in rows if what != "forward" or row["pass"] == "forward"]
            line: dict[str, Any] = {"tokens": size, "pass": what}
            for device in DEVICES:
                dense = max(
                    operations * dense_operations(case) / share / device.tensor,
                    exponentials * pairs / device.exponentials,
                )
                ours = sum(seconds(row, device) for row in mine)
                line[f"ms, {device.name}"] = f"{ours * 1e3:.3g}"
                line[f"dense, {device.name}"] = f"{dense * 1e3:.3g}"
                line[f"x, {device.name}"] = round(dense / ours, 1)
            sums.append(line)
    return Table(parts), Table(sums)
