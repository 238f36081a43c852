"""Multiply-accumulates of backbones by image size and by K, the keys that quadtree attention keeps at each level: the paper's comparison.

    python benchmarks/flops.py --out benchmarks/results/flops.md

Counted, not measured, by `quadtree_attention.bench.flops`: convolutions and matrix products of the four feature maps' backbones, without any head.
At sizes that are no multiple of 32, such as detection's 800x1333, the trees are padded, and what is padded is counted. It takes some minutes.
"""

from __future__ import annotations

import argparse
import sys
from datetime import date
from pathlib import Path
from typing import Any

import timm
import torch

import quadtree_attention.models  # noqa: F401 (registers)
from quadtree_attention.bench.flops import multiply_accumulates
from quadtree_attention.files import atomic_write
from quadtree_attention.table import Table

BACKBONES = (
    *((f"quadtree_b{n}", k) for n in range(5) for k in (1, 8, 32)),
    *((f"pvt_v2_b{n}", None) for n in range(6)),
    ("resnet50", None),
    ("resnet101", None),
    ("resnext101_32x4d", None),
)
SIZES = ((224, 224), (512, 512), (800, 1333))


def row(name: str, k: int | None) -> dict[str, Any]:
    """Figures of one backbone."""
    with torch.device("meta"):
        model = timm.create_model(name, features_only=True, **({} if k is None else {"topk": k}))
    found: dict[str, Any] = {
        "backbone": name,
        "K": "" if k is None else str(k),
        "parameters, M": f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}",
    }
    for height, width in SIZES:
        count = multiply_accumulates(model, torch.empty(1, 3, height, width, device="meta"))[""]
        found[f"GMAC, {height}x{width}"] = f"{count / 1e9:.2f}"
    return found


def main() -> None:
    """Count, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", help="only these, with commas")
    parser.add_argument("--out", type=Path, help=".md")
    options = parser.parse_args()
    wanted = options.backbones.split(",") if options.backbones else [name for name, _ in BACKBONES]
    rows = []
    for name, k in BACKBONES:
        if name in wanted:
            rows.append(row(name, k))
            print(rows[-1], file=sys.stderr, flush=True)
    table = Table(rows)
    print(table.text())
    if options.out is not None:
        lines = [
            "# Multiply-accumulates of backbones",
            "",
            f"{date.today()}, torch {torch.__version__}, timm {timm.__version__}. Counts do not depend on the machine.",
            "",
            "`python benchmarks/flops.py --out benchmarks/results/flops.md`; what is counted: the head of benchmarks/flops.py.",
            "",
            table.markdown(),
        ]
        with atomic_write(options.out) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
