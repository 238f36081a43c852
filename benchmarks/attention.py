"""The operator, its parts, and whole layers on the CPU, beside dense, linear and spatial-reduction attention.

    python benchmarks/attention.py --out benchmarks/results/operator.md --chart benchmarks/results/operator.png

8 heads of 32 channels, float32, on features that vary smoothly over the image; times are medians, taken in turns in one process, and hold
everything from the raster tensors to the raster output. Memory is what a pass holds at most beyond its inputs, gradients and output included.
"limit@" is the share of the limit in percent: the arithmetic that the method needs, at the rate of a matrix product measured in the same run.
Run it with nothing else on the machine; it takes about a quarter of an hour and 20 GB (--no-million leaves out what needs most of it).

    python benchmarks/attention.py --device cuda --out benchmarks/results/operator_cuda_measured.md --chart benchmarks/results/operator_cuda.png

On a GPU: beside scaled_dot_product_attention on each of its backends, linear attention and the reference backend, in bfloat16 and float32,
batches of 1 and 8, 32x32 to 512x512 tokens; timed as CUDA graphs by the device's events.

    python benchmarks/attention.py --predict --out benchmarks/results/operator_cuda.md

needs no GPU: the bytes and operations of each level, and the time that they would take at a GPU's peak rates.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from quadtree_attention.bench import cpu, gpu, gpu_counts
from quadtree_attention.bench.cpu import PASSES, Case
from quadtree_attention.files import atomic_write
from quadtree_attention.models.loftr import LOFTR_PRESETS
from quadtree_attention.models.loftr.transformer import coarse_transformer
from quadtree_attention.nn import FullAttention, LinearAttention, QuadtreeAttention, SpatialReductionAttention
from quadtree_attention.table import Table
from quadtree_attention.viz.chart import save_chart

# The coarsest grid is 16x16 in each, so that all grow by the same factor.
GROWING = [Case((128, 128), (32, 16, 16)), Case((256, 256), (32, 16, 16, 16)), Case((512, 512), (32, 16, 16, 16, 16))]
MILLION = Case((1024, 1024), (32, 16, 16, 16, 16, 16))

BEGIN, END = "<!-- counted: begin -->", "<!-- counted: end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--million", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--chart", type=Path)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--sides", default=",".join(map(str, gpu.SIDES)), help="of the square grids on a GPU")
    parser.add_argument(
        "--predict", action="store_true", help="count bytes and operations on a GPU, and measure nothing"
    )
    options = parser.parse_args()
    sides = [int(side) for side in options.sides.split(",")]
    if options.predict:
        predict([side for side in sides if side >= 64], options.out)
        return
    if options.device != "cpu":
        on_device(options.device, sides, options.out, options.chart)
        return
    sections = []

    def show(title: str, table: Table) -> None:
        sections.append(f"## {title}\n\n{table.markdown()}\n")
        print(f"{title}\n{table.text()}\n", flush=True)

    near = cpu.compare([Case((60, 80)), Case((128, 128))], list(cpu.METHODS), repeats=options.repeats)
    show("Beside the others", near)
    for case in (Case((60, 80)), Case((128, 128))):
        show(f"Where the forward pass goes, {case.grid[0]}x{case.grid[1]}", cpu.parts(case, options.repeats))
    far = cpu.compare(GROWING, ["quadtree", "linear", "spatial reduction"], repeats=3)
    show("Growing", far)
    show("Growth from one size to the next, of 4 times the tokens", growth(far))
    show("Whole layers, 60x80 tokens of 256 channels", layers(options.repeats))
    if options.million:
        show("A million tokens", million())
    if options.chart:
        small = [Case((size, size)) for size in (16, 32, 64)]
        start = cpu.compare(small, ["quadtree", "dense", "linear", "spatial reduction"], repeats=options.repeats)
        rows = [
            row
            for row in (*start.rows, *near.rows, *far.rows)
            if row["method"] != "reference" and row["tokens"] != "60x80"
        ]
        unique = {(row["tokens"], row["method"], row["pass"]): row for row in rows}
        save_chart(Table(list(unique.values()), near.settings), options.chart)
    if options.out:
        settings = "\n".join(f"- {name}: {value}" for name, value in near.settings.items())
        lead = __doc__.partition("\n\n")
        command = f"`python benchmarks/attention.py --out {options.out} --chart {options.chart}`"
        with atomic_write(options.out) as temporary:
            temporary.write_text(
                f"# Operator\n\n{lead[0]}\n\n- command: {command}\n{settings}\n\n" + "\n".join(sections)
            )


def on_device(device: str, sides: list[int], out: Path | None, chart: Path | None) -> None:
    """Measure on a GPU: rows as they come, then the table and a chart of batch 8 in bfloat16."""
    table = gpu.compare(gpu.cases(sides, device=device), show=lambda row: print(row, flush=True))
    print(table.text())
    if out:
        settings = "\n".join(f"- {name}: {value}" for name, value in table.settings.items())
        command = f"`python benchmarks/attention.py --device {device} --out {out}" + (
            f" --chart {chart}`" if chart else "`"
        )
        title = f"# Operator on {table.settings['machine']}"
        with atomic_write(out) as temporary:
            temporary.write_text(f"{title}\n\n- command: {command}\n{settings}\n\n{table.markdown()}\n")
    if chart:
        rows = [row for row in table.rows if row["batch"] == 8 and row["dtype"] == "bfloat16" and row["ms"] is not None]
        machine = f"{table.settings['machine']}, {table.settings['date']}, bfloat16, batch 8"
        save_chart(Table(rows, {**table.settings, "machine": machine}), chart)


def predict(sides: list[int], out: Path | None) -> None:
    """Print what quadtree attention needs on a GPU, batch 8 in bfloat16; into ``out`` goes what stands between its markers."""
    cases = [replace(case, dtype=torch.bfloat16) for case in gpu.cases(sides, (8,), "cpu")]
    parts, sums = gpu_counts.predicted(cases)
    print(f"{sums.text()}\n\n{parts.text()}")
    if out:
        old = out.read_text(encoding="utf-8") if out.exists() else f"{BEGIN}\n{END}\n"
        before, after = old.partition(BEGIN)[0], old.partition(END)[2]
        body = f"## Sums\n\n{sums.markdown()}\n\n## Parts\n\n{parts.markdown()}"
        with atomic_write(out) as temporary:
            temporary.write_text(f"{before}{BEGIN}\n\n{body}\n\n{END}{after}", encoding="utf-8")


def growth(table: Table) -> Table:
    """Ratios of times of neighbouring sizes."""
    rows = []
    for what in dict.fromkeys(row["pass"] for row in table.rows):
        for method in dict.fromkeys(row["method"] for row in table.rows):
            mine = [row for row in table.rows if row["pass"] == what and row["method"] == method]
            steps = {f"{b['tokens']} / {a['tokens']}": round(b["ms"] / a["ms"], 2) for a, b in pairwise(mine)}
            rows.append({"pass": what, "method": method, **steps})
    return Table(rows)


def layers(repeats: int) -> Table:
    """An attention layer with its projections, and the coarse transformer of LoFTR outdoor for 640x480 pixels."""
    x, y = torch.randn(2, 1, 60, 80, 256).unbind(0)
    attentions = {
        "quadtree": QuadtreeAttention(256, 8, levels=3, topk=(16, 8)),
        "linear": LinearAttention(256, 8),
        "spatial reduction": SpatialReductionAttention(256, 8),
        "full": FullAttention(256, 8),
    }
    config = LOFTR_PRESETS["outdoor"]
    kinds = {"quadtree": "quadtree_b", "linear": "linear", "spatial reduction": "sr", "full": "full"}
    rows = _in_turns("attention layer", {name: lambda a=a: a(x) for name, a in attentions.items()}, attentions, repeats)
    networks = {name: coarse_transformer(replace(config, attention=kind)) for name, kind in kinds.items()}
    rows += _in_turns(
        "coarse transformer of LoFTR outdoor", {name: lambda n=n: sum(n(x, y)) for name, n in networks.items()}, networks, max(1, repeats // 2)
    )  # fmt: skip
    return Table(rows)


def _in_turns(
    what: str, calls: dict[str, Callable[[], torch.Tensor]], modules: dict[str, Any], repeats: int
) -> list[dict[str, Any]]:
    seen: dict[tuple[str, str], list[float]] = {(name, how): [] for how in PASSES for name in calls}
    for turn in range(repeats + 1):
        for (name, how), values in seen.items():
            modules[name].zero_grad(set_to_none=True)
            start = time.perf_counter()
            if how == "forward":
                with torch.inference_mode():
                    calls[name]()
            else:
                calls[name]().sum().backward()
            if turn:
                values.append(time.perf_counter() - start)
    took = {key: 1000 * statistics.median(values) for key, values in seen.items()}
    return [
        {
            "what": what,
            "pass": "forward" if how == "forward" else "forward+backward",
            "method": name,
            "ms": took[name, how],
            "x full": round(took["full", how] / took[name, how], 2),
        }
        for how in PASSES
        for name in calls
    ]


def million() -> Table:
    """Quadtree attention of 1024x1024 tokens; all that it holds: inputs, their gradients, output and what lies between."""
    inputs = 3 * 4 * MILLION.tokens * MILLION.heads * MILLION.dim
    rows = []
    for how in PASSES:
        beyond = cpu.memory(MILLION, "quadtree", how)
        took = cpu.times(MILLION, ["quadtree"], how, repeats=1)["quadtree"]
        used = None if beyond is None else round((beyond + inputs) / 1e9, 1)
        rows.append(
            {"pass": "forward" if how == "forward" else "forward+backward", "s": round(took, 1), "GB, inputs too": used}
        )
    return Table(rows)


if __name__ == "__main__":
    main()
