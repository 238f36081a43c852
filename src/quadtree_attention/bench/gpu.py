"""Time and memory of the attentions on a GPU, side by side.

This is what benchmarks/attention.py --device cuda prints. A step is captured as a CUDA graph where possible, so that the host's work does not count,
and timed by the device's own events. Everything except the clock also runs on the CPU, with `WallClock`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import InputError
from ..table import Table
from . import cpu
from .cpu import PASSES, Case, Method
from .gpu_counts import counts, dense_operations

DENSE = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
DENSE_LIMIT = {
    torch.float32: 1e14,
    torch.bfloat16: 2e15,
    torch.float16: 2e15,
}  # operations of a pass that dense attention may take
REFERENCE_LIMIT = 2**19  # tokens of a batch, likewise
SECONDS = 0.5  # that a method is timed for, at least 3 and at most 100 steps
SIDES = (32, 64, 128, 256, 512)


def cases(sides: Sequence[int] = SIDES, batches: Sequence[int] = (1, 8), device: str = "cuda") -> list[Case]:
    """Square grids whose coarsest level is always 16x16: one more level for each doubling."""
    made = []
    for side in sides:
        levels = max(1, side // 16).bit_length()
        topk = (32, *(16,) * (levels - 2))[: levels - 1]
        made += [Case((side, side), topk, batch=batch, device=device) for batch in batches]
    return made


# ---- methods -------------------------------------------------------------------------------------


def _dense(backend: SDPBackend, case: Case) -> Method:
    def method(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (x.flatten(1, 2).transpose(1, 2) for x in (query, key, value))
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v)

    return method


METHODS: dict[str, Callable[[Case], Method]] = {
    **{name: cpu.METHODS[name] for name in ("quadtree", "reference")},
    **{name: partial(_dense, backend) for name, backend in DENSE.items()},
    "linear": cpu.METHODS["linear"],
}


def _left_out(case: Case, method: str, what: str) -> bool:
    if method == "reference":
        return case.batch * case.tokens > REFERENCE_LIMIT
    passes = 1 if what == "forward" else 3.5
    return method in DENSE and passes * dense_operations(case) > DENSE_LIMIT[case.dtype]


# ---- clocks --------------------------------------------------------------------------------------


class Clock(Protocol):
    """Measures the median seconds of one step, and says how; the other attributes describe the device."""

    def __call__(self, step: Callable[[], Any]) -> tuple[float, str]: ...

    def peak(self, step: Callable[[], Any]) -> int | None:
        """Peak memory of a step, in bytes, beyond what was allocated before."""

    def name(self) -> str: ...


class WallClock:
    """For the CPU, to test this file without a GPU."""

    def __call__(self, step: Callable[[], Any]) -> tuple[float, str]:
        seen = []
        for _ in range(3):
            start = time.perf_counter()
            step()
            seen.append(time.perf_counter() - start)
        return statistics.median(seen), "wall"

    def peak(self, step: Callable[[], Any]) -> int | None:
        step()
        return None

    def name(self) -> str:
        return "CPU"


class DeviceClock:
    """CUDA events around replays of a CUDA graph of the step, or around the step itself where it cannot be captured."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)

    def __call__(self, step: Callable[[], Any]) -> tuple[float, str]:
        with torch.cuda.device(self.device):
            run, how = self._captured(step)
            first = self._seconds(run)
            count = max(3, min(100, int(SECONDS / first)))
            return statistics.median(self._seconds(run) for _ in range(count)), how

    def _captured(self, step: Callable[[], Any]) -> tuple[Callable[[], Any], str]:
        stream = torch.cuda.Stream(self.device)  # graphs are captured on a separate stream, after a few steps on it
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=stream):
                step()
        except RuntimeError:
            torch.cuda.synchronize(self.device)
            return step, "events"
        return graph.replay, "graph"

    def _seconds(self, run: Callable[[], Any]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000

    def peak(self, step: Callable[[], Any]) -> int | None:
        step()
        torch.cuda.synchronize(self.device)
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        step()
        torch.cuda.synchronize(self.device)
        return torch.cuda.max_memory_allocated(self.device) - before

    def name(self) -> str:
        return torch.cuda.get_device_name(self.device)


def clock_for(device: str) -> Clock:
    return DeviceClock(device) if torch.device(device).type == "cuda" else WallClock()


# ---- measuring -----------------------------------------------------------------------------------


def compare(
    cases: Sequence[Case],
    methods: Sequence[str] = tuple(METHODS),
    dtypes: Sequence[torch.dtype] = (torch.bfloat16, torch.float32),
    *,
    show: Callable[[dict[str, Any]], None] = lambda row: None,
) -> Table:
    """A row for each case, dtype, pass and method: ms, how many times faster than the fastest dense attention, and MB beyond the inputs.

    Methods that cannot run (no kernel for the dtype, no memory) have no figures, and the reason in the last column. "limit@" is the share of what
    the bytes of `counts` would allow at the rate of a copy measured in this run.
    """
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise InputError(f"methods are {', '.join(methods)}, expected some of {', '.join(METHODS)}")
    clock = clock_for(cases[0].device)
    rate = copy_rate(clock, cases[0].device)
    rows = []
    for case in cases:
        for dtype in dtypes:
            case = replace(case, dtype=dtype)
            for what in PASSES:
                rows += _compared(case, methods, what, clock, rate)
                for row in rows[-len(methods) :]:
                    show(row)
    settings = {
        "date": date.today().isoformat(), "machine": clock.name(), "torch": torch.__version__,
        "copy, GB/s": round(rate / 1e9, 1),
    }  # fmt: skip
    return Table(rows, settings)


def _compared(case: Case, methods: Sequence[str], what: str, clock: Clock, rate: float) -> list[dict[str, Any]]:
    took: dict[str, float] = {}
    how: dict[str, str] = {}
    used: dict[str, int | None] = {}
    for name in methods:
        if _left_out(case, name, what):
            how[name] = "left out: too long"
            continue
        tensors = case.tensors(grad=what == "both")
        method = METHODS[name](case)

        def step(method=method, tensors=tensors) -> None:
            cpu._step(method, tensors, what)

        try:
            used[name] = clock.peak(step)
            took[name], how[name] = clock(step)
        except RuntimeError as error:  # out of memory is one too
            how[name] = str(error).strip().partition("\n")[0][:80]
    dense = min((took[name] for name in DENSE if name in took), default=None)
    limit = sum(row["MB, HBM"] for row in counts(case) if what == "both" or row["pass"] == "forward") * 1e6 / rate
    return [
        {
            "tokens": f"{case.grid[0]}x{case.grid[1]}",
            "batch": case.batch,
            "dtype": str(case.dtype).removeprefix("torch."),
            "pass": "forward" if what == "forward" else "forward+backward",
            "method": name,
            "ms": took[name] * 1000 if name in took else None,
            "x dense": round(dense / took[name], 2) if dense and name in took else None,
            "MB": None if name not in took or (peak := used[name]) is None else peak / 2**20,
            "limit@": limit / took[name] if name == "quadtree" and name in took else None,
            "timed by": how[name],
        }
        for name in methods
    ]


def copy_rate(clock: Clock, device: str, size: int = 2**28) -> float:
    """Bytes per second that a copy reads and writes."""
    if torch.device(device).type == "cpu":
        size = 2**20
    x = torch.zeros(size, dtype=torch.uint8, device=device)
    y = torch.empty_like(x)
    return 2 * size / clock(lambda: y.copy_(x))[0]
