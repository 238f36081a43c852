"""Draw docs/images/quadtree.png, the picture of how the method works: python docs/figures/quadtree.py

The scores are made up, a ridge across the image; which patches are kept is what the operator says.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import Rectangle

from quadtree_attention import quadtree_attention, token_pyramid

SIDE, LEVELS, TOPK, QUERY = 32, 3, (4, 4), (13, 9)  # tokens a side, levels, patches kept, (row, column) of the query
BLUE, ORANGE, LINES = "#0072b2", "#e69f00", "#c8c8c8"  # told apart by the colour-blind too


def main() -> None:
    row, column = np.mgrid[:SIDE, :SIDE] / SIDE
    ridge = np.exp(-(((row - 0.25 - 0.6 * column**2) / 0.07) ** 2)) * np.exp(-(((column - 0.62) / 0.22) ** 2))
    key = torch.from_numpy(20 * ridge).float()[None, :, :, None, None]
    query = torch.ones_like(key)
    _, kept = quadtree_attention(query, key, key, levels=LEVELS, topk=TOPK, return_candidates=True)
    keys = token_pyramid(key, LEVELS)

    figure, axes = plt.subplots(1, LEVELS + 1, figsize=(14, 3.9))
    grid(axes[0], SIDE, "The query: one token of image A")
    cell(axes[0], SIDE, *QUERY, BLUE)
    seen = {(i, j) for i in range(SIDE // 4) for j in range(SIDE // 4)}
    for level, panel in enumerate(axes[1:]):
        side = SIDE // 2 ** (LEVELS - 1 - level)
        what = f"{len(seen)} of {side * side} patches looked at"
        grid(panel, side, f"Level {level + 1}: {what}")
        scores = keys[level][0, :, :, 0, 0].numpy()
        for i, j in seen:
            cell(panel, side, i, j, BLUE, 0.08 + 0.8 * scores[i, j] / scores.max())
        if level == LEVELS - 1:
            break
        shift = LEVELS - 1 - level
        best = kept[level][0, QUERY[0] >> shift, QUERY[1] >> shift, 0].tolist()
        for n in best:
            cell(panel, side, n // side, n % side, ORANGE, edge_only=True)
        seen = {(2 * (n // side) + i, 2 * (n % side) + j) for n in best for i in (0, 1) for j in (0, 1)}
    figure.tight_layout()
    figure.savefig(Path(__file__).parents[1] / "images" / "quadtree.png", dpi=110)


def grid(panel: plt.Axes, side: int, title: str) -> None:
    """Lines of ``side`` x ``side`` patches."""
    panel.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[], aspect="equal")
    panel.set_title(title, fontsize=11)
    for n in range(side + 1):
        panel.axhline(n / side, color=LINES, linewidth=0.5)
        panel.axvline(n / side, color=LINES, linewidth=0.5)


def cell(
    panel: plt.Axes, side: int, row: int, column: int, color: str, alpha: float = 1.0, edge_only: bool = False
) -> None:
    """One patch, filled, or only its edge."""
    look = dict(fill=False, edgecolor=color, linewidth=2.5, zorder=3) if edge_only else dict(color=color, alpha=alpha)
    panel.add_patch(Rectangle((column / side, row / side), 1 / side, 1 / side, **look))


if __name__ == "__main__":
    main()
