"""Charts of tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..extras import require
from ..files import atomic_write
from ..table import Table


def save_chart(table: Table, path: str | Path) -> None:
    """Plot the results of `bench.cpu.compare`: time and memory over tokens, one line per method, forward and backward, with logarithmic axes.

    The suffix of ``path`` gives the format: .png, .svg or .pdf. The file is written whole or not at all.
    """
    figure = require("matplotlib.figure", "bench").Figure(figsize=(9, 4), layout="constrained")
    panels = {"ms": "time, ms"}
    if any(row["MB"] is not None for row in table.rows):
        panels["MB"] = "memory beyond the inputs, MB"
    rows = [row for row in table.rows if row["pass"] != "forward"]
    for axes, (name, label) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for method in dict.fromkeys(row["method"] for row in rows):
            mine = sorted((_tokens(row["tokens"]), row[name]) for row in rows if row["method"] == method)
            mine = [(x, y) for x, y in mine if y is not None and y > 0]
            main = method == "quadtree"
            axes.plot(
                *zip(*mine, strict=True),
                marker="o",
                label=method,
                linewidth=2.5 if main else 1.2,
                zorder=3 if main else 2,
            )
        axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel=label)
        axes.grid(True, which="both", alpha=0.25)
    figure.axes[0].legend()
    figure.suptitle(f"Forward and backward, {table.settings['machine']}", fontsize=10)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150)


def save_error_curves(errors: Mapping[str, Sequence[float]], path: str | Path, *, degrees: bool) -> None:
    """Plot the share of pairs with an error below each value, one line per name; the AUC is the area under it.

    errors: by name, one error per pair, infinite where a method failed; shown up to 20 degrees or 10 pixels. A name that continues another
    after a comma gets the same colour, dashed. The file is written whole or not at all.
    """
    figure = require("matplotlib.figure", "bench").Figure(figsize=(5.5, 4), layout="constrained")
    axes = figure.subplots()
    end, label = (20, "error of the pose, degrees") if degrees else (10, "error of the corners, pixels")
    colours: dict[str, str] = {}
    for name, values in errors.items():
        base, _, variant = name.partition(", ")
        colour = colours.setdefault(base, f"C{len(colours)}")
        known = np.sort([value for value in values if value <= end])
        x = np.concatenate([[0], known, [end]])
        y = 100 * np.concatenate([np.arange(len(known) + 1), [len(known)]]) / max(len(values), 1)
        axes.plot(x, y, label=name, color=colour, linestyle="--" if variant else "-")
    axes.set(xlabel=label, ylabel="pairs, %", xlim=(0, end), ylim=(0, 102))  # a line at 100 % is seen
    axes.grid(True, alpha=0.25)
    axes.legend(loc="lower right", fontsize=9)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _tokens(grid: str) -> int:
    height, width = map(int, grid.split("x"))
    return height * width
