"""quadtree bench."""

from __future__ import annotations

from typing import Annotated

from ..errors import InputError
from ..extras import require
from ..formats import CHART_SUFFIXES
from .app import OVERWRITE, QUIET, app, numbers, typer
from .outputs import Outputs


@app.command()
def bench(
    sizes: Annotated[
        str, typer.Option(help="Token grids, height x width, separated by commas.")
    ] = "32x32,60x80,128x128",
    topk: Annotated[
        str, typer.Option(help="Number of keys that each level but the last keeps, coarse to fine.")
    ] = "32,16",
    variant: Annotated[str, typer.Option(help="Variant of quadtree attention: a or b.")] = "b",
    heads: Annotated[int, typer.Option(min=1, help="Number of heads.")] = 8,
    dim: Annotated[int, typer.Option(min=1, help="Channels per head.")] = 32,
    methods: Annotated[
        str,
        typer.Option(
            help="Methods to measure, separated by commas: quadtree, reference, dense, linear, spatial reduction."
        ),
    ] = "quadtree,dense,linear,spatial reduction",
    repeats: Annotated[int, typer.Option(min=1, help="Number of measurements; the median is reported.")] = 5,
    memory: Annotated[bool, typer.Option(help="Also measure memory, each in its own process.")] = True,
    parts: Annotated[bool, typer.Option(help="Also show where quadtree attention spends its time.")] = False,
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="FILE", help="Write the table to a .json, .csv or .md file.")
    ] = None,
    chart: Annotated[str | None, typer.Option(metavar="FILE", help="Plot it to a .png, .svg or .pdf file.")] = None,
    overwrite: OVERWRITE = False,
    quiet: QUIET = False,
) -> None:
    """Measure attention on this machine's CPU: time, memory, and how both grow with the number of tokens."""
    from ..bench import cpu as benchmark
    from ..table import TABLE_SUFFIXES

    if chart is not None:
        require("matplotlib.figure", "bench")
    cases = [
        benchmark.Case(_grid(size), numbers(topk, "--topk") or (), heads, dim, variant) for size in sizes.split(",")
    ]
    with Outputs((), overwrite=overwrite) as outputs:
        outputs.file("--out", out, TABLE_SUFFIXES)
        outputs.file("--chart", chart, CHART_SUFFIXES)
        table = benchmark.compare(cases, methods.split(","), repeats=repeats, with_memory=memory)
        print(table.text())
        if parts:
            for case in cases:
                print(f"\nforward, {case.grid[0]}x{case.grid[1]}\n{benchmark.parts(case, repeats).text()}")
        if out is not None:
            table.save(out)
        if chart is not None:
            from ..viz.chart import save_chart

            save_chart(table, chart)


def _grid(text: str) -> tuple[int, int]:
    words = text.split("x")
    if len(words) != 2 or not all(word.strip().isdecimal() and int(word) >= 8 for word in words):
        raise InputError(f"--sizes has {text!r}, expected grids of at least 8x8 such as 60x80,128x128")
    return int(words[0]), int(words[1])
