"""Time and memory of the attentions on this machine's CPU, side by side: what `quadtree bench` and benchmarks/attention.py print.

All methods of one case run alternately in one process on the same tensors, in the layout of a projection's output (`[B, H, W, heads, dim]`);
the median counts. Memory is measured in a separate process.
"""

from __future__ import annotations

import ctypes
import gc
import math
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from ..nn.rivals import linear_attention
from ..ops.functional import quadtree_attention
from ..table import Table

PASSES = ("forward", "both")
SPATIAL_POOL = 8  # cells along each axis of the grid that spatial reduction pools keys and values to, as in the paper
WARM_UP = 1.0  # seconds of each method before it is timed: the first dozen calls take up to three times as long
Method = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """Sizes of one comparison: a square or other grid of tokens, and the pyramid of quadtree attention."""

    grid: tuple[int, int]
    topk: tuple[int, ...] = (32, 16)
    heads: int = 8
    dim: int = 32
    variant: str = "b"
    batch: int = 1
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    @property
    def levels(self) -> int:
        return len(self.topk) + 1

    @property
    def tokens(self) -> int:
        return math.prod(self.grid)

    def tensors(self, *, grad: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value that vary smoothly over the image: independent numbers 8 tokens apart, interpolated."""
        generator = torch.Generator().manual_seed(0)
        coarse = [max(2, size // 8) for size in self.grid]
        made = []
        for _ in range(3):
            x = torch.randn(self.batch, self.heads * self.dim, *coarse, generator=generator).to(self.device)
            x = F.interpolate(x, self.grid, mode="bicubic", align_corners=False).permute(0, 2, 3, 1).to(self.dtype)
            made.append(x.unflatten(-1, (self.heads, self.dim)).contiguous().requires_grad_(grad))
        return made[0], made[1], made[2]


# ---- methods -------------------------------------------------------------------------------------


def _quadtree(case: Case, backend: str | None) -> Method:
    return partial(quadtree_attention, topk=case.topk, levels=case.levels, variant=case.variant, backend=backend)


def _rows(x: Tensor) -> Tensor:
    """``[B, H, W, heads, dim]`` to ``[B, heads, N, dim]``, without a copy."""
    return x.flatten(1, 2).transpose(1, 2)


def _dense(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(_rows(query), _rows(key), _rows(value))


def _linear(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return linear_attention(_rows(query), _rows(key), _rows(value))


def _spatial_reduction(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    key, value = (
        F.adaptive_avg_pool2d(x.flatten(3).permute(0, 3, 1, 2), SPATIAL_POOL).flatten(2).unflatten(1, x.shape[3:])
        for x in (key, value)
    )
    return F.scaled_dot_product_attention(_rows(query), key.transpose(2, 3), value.transpose(2, 3))


METHODS: dict[str, Callable[[Case], Method]] = {
    "quadtree": lambda case: _quadtree(case, None),
    "reference": lambda case: _quadtree(case, "reference"),
    "dense": lambda case: _dense,
    "linear": lambda case: _linear,
    "spatial reduction": lambda case: _spatial_reduction,
}


def _step(method: Method, tensors: Sequence[Tensor], what: str) -> None:
    """One forward pass, or one forward and backward pass."""
    if what == "forward":
        with torch.inference_mode():
            method(*tensors)
        return
    for x in tensors:
        x.grad = None
    out = method(*tensors)
    out.backward(torch.ones_like(out))


# ---- measuring -----------------------------------------------------------------------------------


def times(case: Case, methods: Sequence[str], what: str, *, repeats: int = 7) -> dict[str, float]:
    """Median seconds of each method, measured alternately, after a warm-up of `WARM_UP` seconds each."""
    _check(methods, what, repeats)
    tensors = case.tensors(grad=what == "both")
    functions = {name: METHODS[name](case) for name in methods}
    seen: dict[str, list[float]] = {name: [] for name in methods}
    for function in functions.values():
        until = time.perf_counter() + WARM_UP
        _step(function, tensors, what)
        while time.perf_counter() < until:
            _step(function, tensors, what)
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            _step(function, tensors, what)
            seen[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seen.items()}


def memory(case: Case, method: str, what: str) -> float | None:
    """Peak memory of a pass beyond its inputs, in bytes, in a new process; None where the system does not tell (not Linux).

    For a backward pass, gradients and output count too.
    """
    _check([method], what, 1)
    if not Path("/proc/self/clear_refs").exists():
        return None
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_memory_here, (case, method, what, torch.get_num_threads()))


def _memory_here(case: Case, method: str, what: str, threads: int) -> float:
    torch.set_num_threads(threads)
    small = Case((2 ** (case.levels + 1),) * 2, case.topk, case.heads, case.dim, case.variant)
    _step(METHODS[method](small), small.tensors(grad=what == "both"), what)  # loads the kernels
    tensors = case.tensors(grad=what == "both")
    gc.collect()
    _give_back()
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest mark
    _step(METHODS[method](case), tensors, what)
    return _resident("VmHWM") - before


def _give_back() -> None:
    """Return freed memory to the system: the measured step would otherwise reuse it unseen."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def _resident(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return float(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")


def operations(case: Case, what: str) -> float:
    """Operations that quadtree attention needs: the multiplications and additions of matrix products alone.

    A pair of tokens costs 2 products of ``dim`` forward (score, message), and 5 more backward (the score again, its gradient, and the
    gradients of query, key and value).
    """
    tokens = [math.ceil(case.grid[0] / 2**i) * math.ceil(case.grid[1] / 2**i) for i in range(case.levels)][::-1]
    pairs, kept = tokens[0] * tokens[0], tokens[0]
    for count, k in zip(tokens[1:], case.topk, strict=True):
        kept = 4 * min(k, kept)
        pairs += count * kept
    return 2.0 * case.heads * case.dim * pairs * (2 if what == "forward" else 7)


def matrix_rate(size: int = 2048, repeats: int = 7) -> float:
    """Operations per second of a product of two square float32 matrices."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    seen = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        a @ b
        seen.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seen[1:])


def compare(
    cases: Sequence[Case],
    methods: Sequence[str],
    *,
    repeats: int = 7,
    with_memory: bool = True,
    dense_limit: int = 2**14,
) -> Table:
    """A row for each case, method and pass: ms, how many times faster than dense, MB, and the share of the limit.

    The limit is the arithmetic of quadtree attention at the rate of a matrix product in this run. Dense attention and the reference
    backend are left out above ``dense_limit`` tokens.
    """
    rate = matrix_rate()
    rows = []
    for case in cases:
        chosen = [name for name in methods if case.tokens <= dense_limit or name not in ("dense", "reference")]
        for what in PASSES:
            took = times(case, chosen, what, repeats=repeats)
            for name in chosen:
                used = memory(case, name, what) if with_memory else None
                rows.append(
                    {
                        "tokens": f"{case.grid[0]}x{case.grid[1]}",
                        "topk": ",".join(map(str, case.topk)) if name in ("quadtree", "reference") else "-",
                        "pass": "forward" if what == "forward" else "forward+backward",
                        "method": name,
                        "ms": took[name] * 1000,
                        "x dense": round(took["dense"] / took[name], 2) if "dense" in took else None,
                        "MB": None if used is None else used / 2**20,
                        "limit@": operations(case, what) / rate / took[name] if name == "quadtree" else None,
                    }
                )
    return Table(rows, {**machine(), "matrix product, GFLOP/s": round(rate / 1e9, 1), "repeats": repeats})


def parts(case: Case, repeats: int = 7) -> Table:
    """Where the forward pass of the "cpu" backend spends its time, and each part's share of the rate of a matrix product."""
    from ..ops import cpu
    from ..ops.functional import build_tree
    from ..ops.tree import from_tree, level_grids

    query, key, value = case.tensors()
    grids = level_grids(case.grid, case.levels)
    rate = matrix_rate()
    rows: list[dict[str, Any]] = []

    def timed(name: str, function: Callable[[], Any], work: float = 0.0) -> Any:
        seen = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            result = function()
            seen.append(time.perf_counter() - start)
        took = statistics.median(seen[1:])
        rows.append({"part": name, "ms": took * 1000, "rate@": work / took / rate if work else None})
        return result

    with torch.inference_mode():
        trees = timed("averages and tree order", lambda: [build_tree([x], grids, None) for x in (query, key, value)])
        q, k, v = ([x.contiguous() for x in tree.tokens] for tree in trees)
        out, kept, share = cpu._allocate(q, k, v, [*case.topk, 0])
        scale = 1 / math.sqrt(case.dim)
        pair = 4.0 * case.heads * case.dim
        for level in range(case.levels):
            last = level == case.levels - 1
            tokens = q[level].shape[2]
            if level == 0:
                work = pair * tokens * tokens
                above = timed(
                    "coarsest level", lambda: cpu._root_forward(q[0], k[0], v[0], [], [], [], False, 1.0, scale), work
                )
                if not last:
                    timed(
                        "its selection", lambda: cpu._root_forward(q[0], k[0], v[0], [], kept, share, False, 1.0, scale)
                    )
            else:
                work = pair * tokens * 4 * kept[level - 1].shape[-1]
                here = torch.empty(*q[level].shape[:3], case.dim)
                nothing = (kept[0].new_empty(*q[level].shape[:3], 0), here.new_empty(*q[level].shape[:3], 0))
                one = partial(
                    cpu.fine_level, q[level], k[level], v[level], cpu._mask([], level), kept[level - 1], share[level - 1],
                    above, case.variant == "a", 1.0, scale, here,
                )  # fmt: skip
                timed(f"level {level}", partial(one, *nothing), work)
                if not last:
                    timed("its selection", partial(one, kept[level], share[level]))
                above = here
            if not last:
                # Measured with and without: the difference is the selection's.
                rows[-1]["ms"] -= rows[-2]["ms"]
        timed("out of tree order", lambda: from_tree(out, grids[0], case.levels - 1, grids[-1]))
    rows.append({"part": "sum", "ms": sum(row["ms"] for row in rows), "rate@": None})
    return Table(rows, {**machine(), "matrix product, GFLOP/s": round(rate / 1e9, 1)})


def machine() -> dict[str, Any]:
    """The conditions that figures depend on: date, machine, threads and versions."""
    return {
        "date": date.today().isoformat(),
        "machine": f"{_processor()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _check(methods: Sequence[str], what: str, repeats: int) -> None:
    unknown = [name for name in methods if name not in METHODS]
    if unknown or not methods:
        raise InputError(f"methods are {', '.join(methods) or 'none'}, expected some of {', '.join(METHODS)}")
    if what not in PASSES:
        raise InputError(f"pass is {what!r}, expected {' or '.join(PASSES)}")
    if repeats < 1:
        raise InputError(f"repeats is {repeats}, expected at least 1")
