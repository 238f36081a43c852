"""RetinaNet on a small quadtree backbone against the same on PVTv2: the same recipe, steps and photographs.

    python benchmarks/detection.py BCCD_Dataset/BCCD --runs runs/detection --out benchmarks/results/detection_bccd.md

Every run is `quadtree fit` on recipes/detect_tiny_blood_cells.yaml, in a process of its own with one thread, `--jobs` of them at a time. Runs that
are finished are left as they are, others go on from their last checkpoint. The averaged weights are then measured on the test photographs, which
neither training nor any choice has seen. Beside the table: curves, and pictures of what was found below what is there.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import yaml
from torchmetrics.detection import MeanAveragePrecision

from quadtree_attention.data.recognition.detection import DetectionData
from quadtree_attention.table import Table
from quadtree_attention.weights import load
from support.training import fit

RECIPE = Path(__file__).parent.parent / "recipes" / "detect_tiny_blood_cells.yaml"
OURS = ("levels", "topk", "variant", "value_act")  # options that timm's PVTv2 does not have
VARIANTS = ("quadtree", "spatial reduction")


def train(variant: str, seed: int, root: str, epochs: int | None, folder: Path) -> None:
    """One run, unless its result is there."""
    if (folder / "result.json").exists():
        return
    config = yaml.safe_load(RECIPE.read_text())
    detector = config["model"]["init_args"]["detector"]
    if variant == "spatial reduction":
        ratios = [
            2 ** (levels - 1) for levels in detector["options"]["levels"]
        ]  # as coarse as the tree's coarsest level
        detector["backbone"] = "pvt_v2_b0"
        detector["options"] = {k: v for k, v in detector["options"].items() if k not in OURS} | {"sr_ratios": ratios}
    config["seed_everything"] = seed
    config["model"]["init_args"]["seed"] = seed
    config["data"]["init_args"] |= {"root": root, "seed": seed, "num_workers": 0}
    config["trainer"]["max_epochs"] = epochs or config["trainer"]["max_epochs"]
    last = fit(config, folder)
    result = {"variant": variant, "seed": seed, **evaluate(last, config["data"]["init_args"])}
    (folder / "result.json").write_text(json.dumps(result) + "\n")
    print(result, flush=True)


@torch.inference_mode()
def evaluate(checkpoint: Path, data: dict[str, Any]) -> dict[str, Any]:
    """COCO's average precision of the averaged weights on the test photographs."""
    model = load(checkpoint, "detector")
    metric = MeanAveragePrecision(class_metrics=True, backend="pycocotools")
    loader = DetectionData(**(data | {"batch_size": 1})).test_dataloader()
    seconds = 0.0
    for images, targets in loader:
        start = time.process_time()
        found = model(images)
        seconds += time.process_time() - start
        metric.update(found, targets)
    values = metric.compute()
    names = {"map": "AP", "map_50": "AP50", "map_75": "AP75"}
    out = {name: values[key].item() for key, name in names.items()}
    out |= {
        f"AP {label}": value for label, value in zip(model.config.labels, values["map_per_class"].tolist(), strict=True)
    }
    out["parameters"] = sum(p.numel() for p in model.parameters())
    out["of backbone"] = sum(p.numel() for p in model.backbone.body.parameters())
    return out | {"ms": 1000 * seconds / len(loader), "images": len(loader)}


def table(results: list[dict[str, Any]]) -> Table:
    """One row a run, shares in percent."""
    rows = []
    for result in results:
        row = {"attention": result["variant"], "seed": result["seed"]}
        row |= {name: result[name] for name in ("parameters", "of backbone")}
        row |= {name: f"{100 * value:.1f}" for name, value in result.items() if name.startswith("AP")}
        rows.append(row)
    return Table(rows)


def curves(folders: dict[str, Path], path: Path) -> None:
    """Loss of training, and AP of validation, over steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss, precision = figure.subplots(1, 2)
    for name, folder in folders.items():
        points: dict[str, dict[float, float]] = {}
        for log in sorted(folder.glob("log/version_*/metrics.csv"), key=lambda one: int(one.parent.name[8:])):
            with log.open(newline="") as file:
                for row in csv.DictReader(file):
                    for key in ("train/loss", "val/AP", "val/AP50"):
                        if row.get(key):
                            points.setdefault(key, {})[int(row["step"])] = float(row[key])
        lines = sorted(points["train/loss"].items())
        means = [sum(y for _, y in lines[max(0, n - 9) : n + 1]) / min(n + 1, 10) for n in range(len(lines))]
        (line,) = loss.plot([x for x, _ in lines], means, label=name)
        for key, style in (("val/AP50", "o--"), ("val/AP", "o-")):
            xs, ys = zip(*sorted(points[key].items()), strict=True)
            label = f"{name}, {key[4:]}"
            precision.plot(xs, [100 * y for y in ys], style, color=line.get_color(), label=label)
    loss.set(xlabel="step", ylabel="loss of training, mean of 100 steps", ylim=0)
    precision.set(xlabel="step", ylabel="of the validation photographs, %", ylim=(0, 100), xlim=(0, loss.get_xlim()[1]))
    for axes in (loss, precision):
        axes.grid(alpha=0.25)
        axes.legend()
    figure.savefig(path, dpi=130)


def pictures(folders: dict[str, Path], root: str, path: Path, count: int = 3) -> None:
    """What is there, and what each network found, of the first test photographs, in one picture."""
    import numpy as np

    from quadtree_attention.predict.detection import Detections, Detector
    from quadtree_attention.viz.detection import draw_detections
    from quadtree_attention.viz.drawing import save_picture

    data = copy.deepcopy(yaml.safe_load(RECIPE.read_text())["data"]["init_args"]) | {"root": root}
    images = DetectionData(**data).annotations("test").images[:count]
    detectors = {name: Detector(load(folder / "last.ckpt", "detector"), "cpu") for name, folder in folders.items()}
    labels = next(iter(detectors.values())).config.labels
    columns = []
    for one in images:
        names = tuple(labels[n] for n in one.labels)
        there = Detections(one.boxes, names, np.ones(len(names), np.float32), one.labels, one.size)
        column = [draw_detections(one.path, there, scores=False, max_side=480)]
        column += [
            draw_detections(one.path, each.detect(one.path, score=0.4), max_side=480) for each in detectors.values()
        ]
        columns.append(np.concatenate(column, 0))
    save_picture(np.concatenate(columns, 1), path)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", help="folder BCCD of BCCD_Dataset")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--epochs", type=int, help="by default those of the recipe")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, help=".md, .json or .csv; curves and pictures go beside it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    jobs = [(variant, seed) for seed in range(arguments.seeds) for variant in VARIANTS]
    folders = [arguments.runs / f"{variant.replace(' ', '_')}-{seed}" for variant, seed in jobs]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(lambda job, folder: train(*job, arguments.root, arguments.epochs, folder), jobs, folders))
    found = table([json.loads((folder / "result.json").read_text()) for folder in folders])
    print(found.text())
    if arguments.out is not None:
        found.save(arguments.out)
        first = dict(zip(VARIANTS, folders, strict=False))
        curves(first, arguments.out.with_name(f"{arguments.out.stem}_curves.png"))
        pictures(first, arguments.root, arguments.out.with_name(f"{arguments.out.stem}_photos.jpg"))


if __name__ == "__main__":
    main()
