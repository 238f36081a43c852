"""The embedded stereo network beside OpenCV's SGBM on pairs it never saw; and what full and quadtree attention cost in STTR.

    python benchmarks/stereo.py --opencv DATA --skimage DATA --cones DATA --cost --out benchmarks/results/stereo.md

Where the pairs come from (each may be left out, and is then left out of the table):

--opencv      the folder usr/share/doc/opencv-doc/examples/data of the Debian package opencv-doc: aloeL/aloeR with disparity
--skimage     the folder .../skimage/data of the Debian package python3-skimage, or of scikit-image: motorcycle, with disparity
--cones       the folder notebooks/data of the source distribution of the PyPI package pandora: Cones, with disparity
--middlebury  a folder of NAME/left.png, right.png, disp.png (256 times the pixels): the pairs --names, by default those that training left out

Methods: the network with its last step, the network alone, and OpenCV's SGBM. SGBM is told the largest disparity (1.1 times the true one), which
the network is not. Its setting joins the two best of fifteen that were tried on the 14 Middlebury pairs that we train on (blocks of 3, P1 = 4 *
27, P2 = 64 * 27, uniqueness 5, prefilter 31, eight directions, left-right check); both views are continued to the left, where it would give
nothing; pixels that it leaves out take the smaller disparity of their neighbours in the row. SGBM+WLS, where OpenCV has ximgproc (opencv-contrib-
python-headless), is filtered with lambda 8000 and sigma 1.5, and its right view's disparity. Errors are over all pixels with known disparity,
hidden ones too, and over those that both views show. Nobody has measured which pixels are hidden: those are that the true disparity itself puts
behind something in the right view, or out of it; SGBM's are those that it leaves out.

--cost     STTR's own full attention (content and position terms), full attention with rotary positions, quadtree attention: multiply-accumulates,
           counted (convolutions, matrix products, attention), and peak memory beyond the loaded network and time, measured in a process of their own.
           The training step recomputes attention in its backward pass, as published, at a quarter of the rows: it would take long otherwise.
--alike    train a small network (`SMALL`) from scratch, with quadtree and with full attention, both rotary: the same seed, steps and pairs, made of
           --photos (a folder with the folders train and validation of photographs), and measure both on the same synthetic pairs of other
           photographs. A run that was cut off goes on where its checkpoint in --runs stands. --steps: of 2 pairs of 64x320 pixels.
           In a forward pass rows go through the transformer in groups, but with "all rows at once", which is how STTR does it. "As released": STTR's
           release projects the positions of all pairs of tokens anew in each layer, and scores those; we score every distance once and shift.
--presets  only these of: published, sttr, full, quadtree
--modes    only these of: forward, training
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from quadtree_attention.bench.flops import multiply_accumulates
from quadtree_attention.data.images import read_image
from quadtree_attention.data.maps import read_map
from quadtree_attention.data.stereo.datasets import hidden_by_disparity
from quadtree_attention.evaluation.stereo import disparity_metrics, occlusion_iou
from quadtree_attention.models.sttr import STTR, STTR_PRESETS, attention
from quadtree_attention.models.sttr.assignment import fill_from_behind
from quadtree_attention.predict.stereo import StereoMatcher
from quadtree_attention.table import Table
from quadtree_attention.tasks.stereo.loss import StereoTruth, stereo_losses

SIZE = (540, 960)  # Scene Flow's
VARIANTS = {
    "published": ("full, STTR's position terms, all rows at once", STTR_PRESETS["sttr"]),
    "sttr": ("full, STTR's position terms", STTR_PRESETS["sttr"]),
    "full": ("full, rotary", replace(STTR_PRESETS["quadtree"], attention="full")),
    "quadtree": ("quadtree b, rotary", STTR_PRESETS["quadtree"]),
}

METRICS = {"epe": "EPE", "bad@1": "bad-1 %", "bad@2": "bad-2 %", "bad@3": "bad-3 %", "d1": "D1 %"}
SMALL = {  # what two cores can train in minutes
    "stem_dims": (8, 8, 16), "stage_dims": (24, 32), "blocks_per_stage": 1, "pool_dim": 8, "growth": 8, "dim": 32, "num_heads": 2,
    "fine_dim": 0, "context_blocks": 1, "context_dim": 4,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", default=["Art", "Bowling2", "Dolls"])
    for name in ("opencv", "skimage", "cones", "middlebury"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-size", type=int, default=800)
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--alike", nargs="+", choices=("quadtree_b", "quadtree_a", "full"))
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--presets", default=",".join(VARIANTS))
    parser.add_argument("--modes", default="forward,training")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return
    sections = []
    rows = [row for pair in pairs(options) for row in accuracy(*pair, options)]
    if rows:
        sections.append(("Accuracy", Table([shown(row) for row in [*rows, *means(rows)]])))
        print(sections[-1][1].text(), flush=True)
    if options.cost:
        for title, table in costs(options.presets.split(","), options.modes.split(",")):
            sections.append((title, table))
            print(f"\n{title}\n{table.text()}", flush=True)
    if options.alike:
        if options.photos is None:
            parser.error("--alike needs --photos")
        rows = [alike(attention, options.photos, options.steps, options.runs) for attention in options.alike]
        sections.append((f"Trained alike, {options.steps} steps from scratch", Table(rows)))
        print(sections[-1][1].text(), flush=True)
    if options.out:
        options.out.write_text(report(sections), encoding="utf-8")


# ---- accuracy ------------------------------------------------------------------------------------


def pairs(options: argparse.Namespace) -> list[tuple[str, Path, Path, Path]]:
    """Name, left, right, disparity of the pairs that are there."""
    found = []
    if options.skimage:
        files = ("motorcycle_left.png", "motorcycle_right.png", "motorcycle_disp.npz")
        found.append(("motorcycle", *(options.skimage / file for file in files)))
    if options.opencv:
        found.append(("aloe", *(options.opencv / file for file in ("aloeL.jpg", "aloeR.jpg", "aloeGT.png"))))
    if options.cones:
        files = ("Cones_LEFT.tif", "Cones_RIGHT.tif", "Cones_LEFT_GT.tif")
        found.append(("cones", *(options.cones / file for file in files)))
    if options.middlebury:
        files = ("left.png", "right.png", "disp.png")
        found += [(name, *(options.middlebury / name / file for file in files)) for name in options.names]
    return found


def accuracy(name: str, left: Path, right: Path, truth: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    images = [read_image(path) for path in (left, right)]
    disparity = read_map(truth).astype(np.float32) / (256 if truth.name == "disp.png" else 1)
    disparity = disparity[..., 0] if disparity.ndim == 3 else disparity
    known = np.isfinite(disparity) & (disparity > 0)
    disparity[~known] = 0
    hidden = hidden_by_disparity(disparity)
    rows = []
    matcher = StereoMatcher.from_pretrained(options.model, device="cpu")
    matcher.match(*images, max_size=320)  # what is compiled or imported on first use
    model = Path(options.model).stem
    methods = [model, f"{model}, network alone", "SGBM", *(["SGBM+WLS"] if hasattr(cv2, "ximgproc") else [])]
    for method in methods:
        times = []  # of the processor, and of the clock
        for _ in range(options.repeats):
            start = time.process_time(), time.perf_counter()
            if method.startswith("SGBM"):
                found, occlusion = sgbm(*images, float(disparity.max()), smooth=method == "SGBM+WLS")
            else:
                result = matcher.match(*images, max_size=options.max_size, exact=method == model)
                found, occlusion = result.disparity, result.occlusion
            times.append((time.process_time() - start[0], time.perf_counter() - start[1]))
        row: dict[str, Any] = {"pair": name, "size": f"{images[0].shape[1]}x{images[0].shape[0]}", "method": method}
        for words, pixels in (("", known), (", seen", known & ~hidden)):
            metrics = disparity_metrics(*(torch.from_numpy(x) for x in (found, disparity, pixels)))
            row |= {
                f"{label}{words}": (100 if label.endswith("%") else 1) * float(metrics[key])
                for key, label in METRICS.items()
            }
        iou = occlusion_iou(*(torch.from_numpy(x) for x in (occlusion, hidden, known)))
        rows.append(
            row
            | {
                "occlusion IOU": float(iou),
                "CPU s": sorted(times)[len(times) // 2][0],
                "s": sorted(times)[len(times) // 2][1],
            }
        )
    return rows


def means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of every method over all pairs."""
    methods = dict.fromkeys(row["method"] for row in rows)
    found = []
    for method in methods:
        mine = [row for row in rows if row["method"] == method]
        numbers = {
            key: float(np.mean([row[key] for row in mine]))
            for key, value in mine[0].items()
            if isinstance(value, float)
        }
        found.append({"pair": "mean", "size": f"{len(mine)} pairs", "method": method} | numbers)
    return found


def shown(row: dict[str, Any]) -> dict[str, str]:
    """A row as the table has it."""
    digits = {"EPE": 2, "EPE, seen": 2, "occlusion IOU": 3, "CPU s": 2, "s": 2}
    return {key: f"{value:.{digits.get(key, 1)}f}" if isinstance(value, float) else value for key, value in row.items()}


def sgbm(left: np.ndarray, right: np.ndarray, largest: float, smooth: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Disparity ``[H, W]``, and 1 where there was none. smooth: by the weighted least squares of opencv-contrib, which fill everything."""
    count = 16 * int(np.ceil(1.1 * largest / 16))
    matcher = cv2.StereoSGBM_create(
        0, count, 3, 4 * 27, 64 * 27, -1 if smooth else 1, 31, 5, 100, 2, cv2.STEREO_SGBM_MODE_HH
    )  # fmt: skip
    # It gives nothing within so many columns of the left border; so there are more of them.
    left, right = (cv2.copyMakeBorder(x[..., ::-1], 0, 0, count, 0, cv2.BORDER_REPLICATE) for x in (left, right))
    found = matcher.compute(left, right)
    known = found >= 0
    if smooth:
        from_right = cv2.ximgproc.createRightMatcher(matcher).compute(right, left)
        wls = cv2.ximgproc.createDisparityWLSFilter(matcher)
        wls.setLambda(8000)
        wls.setSigmaColor(1.5)
        filtered = wls.filter(found, np.ascontiguousarray(left), disparity_map_right=from_right)
        return (filtered[:, count:].astype(np.float32) / 16).clip(0), np.float32(~known)[:, count:]
    found, known = found[:, count:].astype(np.float32) / 16, known[:, count:]
    filled = fill_from_behind(torch.from_numpy(found)[None], torch.from_numpy(known)[None])
    return filled[0].numpy(), np.float32(~known)


# ---- cost ----------------------------------------------------------------------------------------


def costs(names: list[str], modes: list[str]) -> list[tuple[str, Table]]:
    forward, training, counted = [], [], {name: count(name) for name in names}
    for name in names:
        config = VARIANTS[name][1]
        for part in ("whole", "transformer"):
            row = {"attention": VARIANTS[name][0], "part": part}
            row |= {"GMAC": f"{counted[name][part]['ours'] / 1e9:.0f}"}
            row |= {
                "GMAC as released": f"{counted[name][part]['released'] / 1e9:.0f}"
                if config.position == "relative"
                else "-"
            }
            for mode, rows in (("forward", forward), ("training", training)):
                if mode not in modes or (name, mode) == ("published", "training"):
                    continue
                command = [sys.executable, __file__, "--measure", name, mode, part]
                out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                measured = json.loads(out.splitlines()[-1])
                figures = {"memory, GB": f"{measured['bytes'] / 2**30:.2f}", "s": f"{measured['seconds']:.1f}"}
                rows.append((row if mode == "forward" else {k: row[k] for k in ("attention", "part")}) | figures)
                print(name, part, mode, figures, file=sys.stderr, flush=True)
    height, width = SIZE
    titles = {
        f"Cost of a forward pass at {width}x{height}": forward,
        f"Cost of a training step at {width}x{height // 4}": training,
    }
    return [(title, Table(rows)) for title, rows in titles.items() if rows]


def count(name: str) -> dict[str, int]:
    """Multiply-accumulates of a forward pass of one pair, of the whole network and of its transformer."""
    config = VARIANTS[name][1]
    with torch.device("meta"):
        model = STTR(config)
    model.transformer.tokens_at_once = None
    images = torch.empty(2, 1, 3, *SIZE, device="meta")

    def released(scores: torch.Tensor) -> torch.Tensor:
        """STTR's release takes the distances of W x W pairs and projects them anew each time; we score 2 W - 1 and shift."""
        nonlocal extra
        width, dim = scores.shape[-2], config.dim
        extra -= scores.numel() // (2 * width - 1) * (width - 1) * dim // config.num_heads
        extra += (width * width - (2 * width - 1)) * dim * dim
        return by_distance(scores)

    by_distance, extra = attention.by_distance, 0
    attention.by_distance = released
    try:
        found = multiply_accumulates(model, *images)
    finally:
        attention.by_distance = by_distance
    parts = {"whole": found[""], "transformer": found["transformer"]}
    return {part: {"ours": number, "released": number + extra} for part, number in parts.items()}


def measure(name: str, mode: str, part: str) -> dict[str, float]:
    """Peak memory beyond what the loaded network takes, and time, in this process."""
    torch.manual_seed(0)
    config = VARIANTS[name][1]
    model = STTR(config).to(memory_format=torch.channels_last)
    model.transformer.recompute = True
    if name == "published":
        model.transformer.tokens_at_once = None
    height, width = SIZE if mode == "forward" else (SIZE[0] // 4, SIZE[1])
    run(model, mode, part, 24, 96)  # what is compiled or imported on first use
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    run(model, mode, part, height, width)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "bytes": 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)}


def run(model: STTR, mode: str, part: str, height: int, width: int) -> None:
    model.train(mode == "training")
    with torch.inference_mode(mode == "forward"):
        if part == "transformer":
            stride = model.config.stride
            tokens = torch.randn(2, 1, height // stride, width // stride, model.config.dim)
            tokens.requires_grad_(mode == "training")
            result = model.transformer(*tokens).sum()
        else:
            left, right = torch.rand(2, 1, 3, height, width)
            output = model(left, right)
            disparity = torch.full((1, height, width), 9.0)
            truth = StereoTruth(disparity, torch.zeros(1, height, width, dtype=torch.bool), None, model.config.stride)
            result = sum(stereo_losses(output, truth).values()) if mode == "training" else output.disparity
        if mode == "training":
            result.backward()
            torch.optim.AdamW(model.parameters(), 1e-4).step()


# ---- trained alike -------------------------------------------------------------------------------


def alike(attention: str, photos: Path, steps: int, runs: Path) -> dict[str, str]:
    """Train with one attention, and what it then does on synthetic pairs of other photographs."""
    from lightning.pytorch import Trainer, seed_everything
    from lightning.pytorch.callbacks import ModelCheckpoint

    from quadtree_attention.data.stereo.synthetic import StereoData
    from quadtree_attention.tasks.optimization import Optimization
    from quadtree_attention.tasks.stereo.loss import LossConfig
    from quadtree_attention.tasks.stereo.module import StereoTask

    seed_everything(0)
    rates = Optimization(learning_rate=3e-3, warmup_steps=100, betas=(0.9, 0.99))
    loss = LossConfig(raw_weight=0.2, disparity_weight=0.3)
    task = StereoTask("tiny", SMALL | {"attention": attention}, optimization=rates, loss=loss)
    folders = (str(photos / name) for name in ("train", "validation"))
    data = StereoData(*folders, size=(64, 320), batch_size=2, length=2 * steps, val_length=60, num_workers=0)
    folder = runs / f"stereo_{attention}_{steps}"
    keep = ModelCheckpoint(folder, "last", enable_version_counter=False, train_time_interval=timedelta(minutes=2))
    trainer = Trainer(
        accelerator="cpu", precision="bf16-mixed", max_steps=steps, gradient_clip_val=1.0, callbacks=[keep], logger=False,
        limit_val_batches=0, num_sanity_val_steps=0, enable_model_summary=False, enable_progress_bar=sys.stderr.isatty(),
    )  # fmt: skip
    last = folder / "last.ckpt"
    trainer.fit(task, data, ckpt_path=last if last.exists() else None, weights_only=False)
    tester = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    found = tester.test(task, data, verbose=False)[0]
    row = {
        "attention": attention,
        "EPE": f"{found['test/epe']:.3f}",
        "EPE, seen by both": f"{found['test/epe_visible']:.3f}",
    }
    row |= {f"{key}, %": f"{100 * found[f'test/{key}']:.1f}" for key in ("bad@1", "bad@2", "bad@3", "d1")}
    return row | {"occlusion IOU": f"{found['test/iou']:.3f}"}


# ---- report --------------------------------------------------------------------------------------


def report(sections: list[tuple[str, Table]]) -> str:
    words = " ".join(
        Path(word).name if "/" in word and not word.startswith("benchmarks") else word for word in sys.argv[1:]
    )
    lines = [
        "# Stereo",
        "",
        f"- date: {date.today()}",
        f"- machine: {processor()}, {torch.get_num_threads()} threads; Python {platform.python_version()}, torch {torch.__version__}",
        f"- command: `python benchmarks/stereo.py {words}`",
        "- what the columns mean: the head of benchmarks/stereo.py",
    ]
    for title, table in sections:
        lines += ["", f"## {title}", "", table.markdown()]
    return "\n".join(lines) + "\n"


def processor() -> str:
    """Name of the processor, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
