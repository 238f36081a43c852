"""Backbones on this machine, one image at a time: quadtree attention beside spatial reduction, a plain and a windowed transformer.

    python benchmarks/backbones.py --out benchmarks/results/backbones.md --chart benchmarks/results/backbones.png

Forward: float32, inference mode, in whichever memory layout is the faster one for that network. Training step: forward
and backward of one image, gradients of all parameters, no optimiser. Times are medians, the networks of one size taken in turns. Memory is what
the process holds at most beyond the network itself, in a process of its own. Networks of fixed size are made for each size. All have random
weights: what attention selects does not depend on the image then, but the work is the same. Freed memory is kept for the next tensors, for all
networks alike: without that each of them is slower, PVTv2 the most.
Run it with nothing else on the machine; it takes about five minutes on two cores.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import timm
import torch

import quadtree_attention.models  # noqa: F401 (registers)
from quadtree_attention.bench.cpu import machine
from quadtree_attention.files import atomic_write
from quadtree_attention.ops.memory import keep_freed_memory
from quadtree_attention.table import Table

NETWORKS = (
    "quadtree_b0",
    "pvt_v2_b0",
    "quadtree_b2",
    "pvt_v2_b2",
    "vit_small_patch16_224",
    "swin_tiny_patch4_window7_224",
)
FIXED = ("vit", "swin")  # made for one size


def network(name: str, size: int, layout: torch.memory_format = torch.contiguous_format) -> torch.nn.Module:
    """The network for images of one size, without a head."""
    options = {"img_size": size} if name.startswith(FIXED) else {}
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=0, **options).eval().to(memory_format=layout)


def step(model: torch.nn.Module, image: torch.Tensor, training: bool) -> None:
    """One forward pass, or a forward and a backward pass."""
    if training:
        model(image).square().mean().backward()
        model.zero_grad(set_to_none=True)
    else:
        with torch.inference_mode():
            model(image)


def seconds(model: torch.nn.Module, image: torch.Tensor, training: bool) -> float:
    """Of one step."""
    start = time.perf_counter()
    step(model, image, training)
    return time.perf_counter() - start


def fastest_layout(name: str, size: int, image: torch.Tensor) -> tuple[torch.nn.Module, torch.Tensor, str]:
    """The network and the image in the memory layout in which a forward pass takes less time."""
    tried = []
    for layout, label in ((torch.contiguous_format, "contiguous"), (torch.channels_last, "channels last")):
        model, mine = network(name, size, layout), image.contiguous(memory_format=layout)
        step(model, mine, False)
        tried.append((min(seconds(model, mine, False) for _ in range(2)), label, model, mine))
    _, label, model, mine = min(tried, key=lambda row: row[0])
    return model, mine, label


def memory(name: str, sizes: list[int]) -> dict[tuple[int, bool], float]:
    """Megabytes of a step beyond the network, for each size and forward or training, measured in a new process."""
    command = [sys.executable, __file__, "--memory", name, "--sizes", ",".join(map(str, sizes))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {(row["size"], row["training"]): row["MB"] for row in json.loads(done.stdout.splitlines()[-1])}


def memory_here(name: str, sizes: list[int]) -> list[dict[str, Any]]:
    """What `memory` measures, in this process."""
    rows = []
    for size in sizes:
        for training in (False, True):
            model = network(name, size)
            if not rows:
                step(model, torch.randn(1, 3, size, size), training)  # loads the kernels
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)  # glibc's: what is freed goes back to the system
            before = resident("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # the highest from here on
            step(model, torch.randn(1, 3, size, size), training)
            rows.append({"size": size, "training": training, "MB": (resident("VmHWM") - before) / 1e6})
            del model
    return rows


def resident(name: str) -> float:
    """A figure of /proc/self/status in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return float(line.split()[1]) * 1024


def measure(sizes: list[int], names: list[str], seconds_each: float) -> Table:
    """All networks at all sizes, forward and training step."""
    rows: list[dict[str, Any]] = []
    held = {name: memory(name, sizes) for name in names}
    keep_freed_memory()  # as quadtree attention does by itself: all networks gain
    for size in sizes:
        image = torch.randn(1, 3, size, size)
        made = {name: fastest_layout(name, size, image) for name in names}
        for training in (False, True):
            found: dict[str, list[float]] = {name: [] for name in names}
            for name, (model, mine, _) in made.items():  # warms up
                found[name].append(seconds(model, mine, training))
            rounds = max(2, min(15, round(seconds_each / sum(times[0] for times in found.values()))))
            for _ in range(rounds):
                for name, (model, mine, _) in made.items():
                    found[name].append(seconds(model, mine, training))
            for name, times in found.items():
                row = {
                    "network": name,
                    "pixels": f"{size}x{size}",
                    "pass": "training step" if training else "forward",
                    "layout": made[name][2],
                    "ms": 1000 * statistics.median(times[1:]),
                    "MB": held[name][size, training],
                }
                rows.append(row)
                print(row, file=sys.stderr, flush=True)
    return Table(rows, machine())


def chart(table: Table, path: Path) -> None:
    """Time and memory over the side of the image, one line a network."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    panels = (("forward", "ms"), ("training step", "ms"), ("forward", "MB"))
    for axes, (what, figure_name) in zip(figure.subplots(1, 3), panels, strict=True):
        for name in dict.fromkeys(row["network"] for row in table.rows):
            mine = [row for row in table.rows if row["network"] == name and row["pass"] == what]
            ours = name.startswith("quadtree")
            axes.plot(
                [int(row["pixels"].partition("x")[0]) for row in mine],
                [row[figure_name] for row in mine],
                marker="o",
                label=name,
                linewidth=2.5 if ours else 1.2,
            )
        axes.set(xscale="log", yscale="log", xlabel="pixels a side", ylabel=figure_name, title=what)
        axes.grid(True, which="both", alpha=0.25)
    figure.axes[0].legend(fontsize=7)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150)


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="224,448,896")
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--seconds", type=float, default=10.0, help="for each size and pass, about")
    parser.add_argument("--out", type=Path, help=".md, .json or .csv")
    parser.add_argument("--chart", type=Path, help=".png, .svg or .pdf")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.sizes.split(",")]
    if arguments.memory:
        print(json.dumps(memory_here(arguments.memory, sizes)))
        return
    table = measure(sizes, arguments.networks.split(","), arguments.seconds)
    print(table.text())
    if arguments.out:
        table.save(arguments.out)
    if arguments.chart:
        chart(table, arguments.chart)


if __name__ == "__main__":
    main()
