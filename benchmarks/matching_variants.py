"""The attentions of the paper's comparison of matchers, in the same network, trained alike on synthetic homographies.

    python benchmarks/matching_variants.py PHOTOS --runs runs/variants --out benchmarks/results/matching_variants.md

PHOTOS holds train/ and test/, such as github alexeygrigorev/clothing-dataset-small. Every run is `quadtree fit` on recipes/loftr_variants.yaml
with one of recipes/variants laid over it, in a process of its own, one after another. Runs that are finished are left as they are, one that
was cut off goes on from its last checkpoint. Measured on pairs of photographs kept out of training, the same for all.

--presets lite,outdoor trains each row in several sizes: outdoor is LoFTR, lite LoFTR-lite, with half of its channels.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import warnings
from datetime import date
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Trainer

from quadtree_attention.data.matching.homography import HomographyData
from quadtree_attention.table import Table
from quadtree_attention.tasks.matching.module import MatchingTask
from quadtree_attention.weights import load
from support.training import fit

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes" / "loftr_variants.yaml"
VARIANTS = {
    "linear": "linear (LoFTR)",
    "sr": "spatial reduction",
    "quadtree_a": "quadtree a, K=8",
    "quadtree_b": "quadtree b, K=8",
    "quadtree_b16_vit": "quadtree b, K=16, ViT block",
}
METRICS = {"recall": "recall", "right@3px": "right@3px", "auc@3": "auc@3", "auc@5": "auc@5", "auc@10": "auc@10"}


def train(preset: str, variant: str, seed: int, photos: Path, folder: Path, pairs: int, steps: int | None) -> None:
    """One run and its figures, unless they are there."""
    if (folder / "result.json").exists():
        return
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    recipe["seed_everything"] = seed
    recipe["model"]["init_args"]["preset"] = preset
    data = recipe["data"]["init_args"]
    data |= {"train_folder": str(photos / "train"), "val_folder": str(photos / "test"), "seed": seed}
    recipe["trainer"]["max_steps"] = steps or recipe["trainer"]["max_steps"]
    start = time.perf_counter()
    last = fit(recipe, folder, [RECIPE.parent / "variants" / f"{variant}.yaml"])
    minutes = (time.perf_counter() - start) / 60
    result = {"preset": preset, "variant": variant, "seed": seed, "minutes": minutes, **measure(last, data, pairs)}
    (folder / "result.json").write_text(json.dumps(result) + "\n", encoding="utf-8")
    print(result, flush=True)


def measure(checkpoint: Path, data: dict[str, Any], pairs: int) -> dict[str, float]:
    """What validation measures on pairs of photographs kept out, of the averaged weights; the same pairs for every seed."""
    model = load(checkpoint, "matcher")
    task = MatchingTask()
    task.model = model
    module = HomographyData(**{**data, "val_length": pairs, "seed": 1000})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Lightning: few workers
        trainer = Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False, inference_mode=True
        )
        (found,) = trainer.validate(task, module, verbose=False)
    parameters = sum(p.numel() for p in model.parameters())
    return {"parameters": parameters, **{name.removeprefix("val/"): value for name, value in found.items()}}


def table(results: list[dict[str, Any]]) -> Table:
    """Means over the seeds, and the spread where there are several."""
    rows = []
    for preset, variant in dict.fromkeys((result["preset"], result["variant"]) for result in results):
        mine = [result for result in results if (result["preset"], result["variant"]) == (preset, variant)]
        row: dict[str, Any] = {"network": preset, "attention": VARIANTS[variant], "parameters": mine[0]["parameters"]}
        for name, title in METRICS.items():
            values = [100 * result[name] for result in mine]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            row[f"{title}, %"] = f"{statistics.mean(values):.1f}{spread}"
        rows.append({**row, "matches": statistics.mean(result["matches"] for result in mine), "runs": len(mine)})
    return Table(rows)


def report(found: Table, options: argparse.Namespace) -> str:
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    steps, data = options.steps or recipe["trainer"]["max_steps"], recipe["data"]["init_args"]
    return "\n".join(
        [
            "# Attentions of the matcher, trained alike",
            "",
            f"- date: {date.today()}",
            f"- machine: {options.machine or platform.processor()}; Python {platform.python_version()}, torch {torch.__version__}",
            "- command: `python benchmarks/matching_variants.py PHOTOS --runs runs/variants --out benchmarks/results/matching_variants.md`",
            f"- training: recipes/loftr_variants.yaml, {steps} steps of {data['batch_size']} pairs of "
            f"{data['size'][1]}x{data['size'][0]} pixels, from scratch, one core",
            f"- measured on {options.pairs} pairs of photographs kept out of training, the averaged weights; mean ± standard deviation over the "
            "seeds. recall: true matches whose row of confidences peaks there; right: matches within 3 pixels; auc: of the corner error",
            "",
            found.markdown(),
            "",
        ]
    )


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--presets", default="lite", help="with commas")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="with commas")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="other than the recipe's")
    parser.add_argument("--pairs", type=int, default=200, help="to measure on")
    parser.add_argument("--machine", help="its name in the report")
    parser.add_argument("--out", type=Path, help=".md, written anew after each run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for seed in range(options.seeds):
        for preset in options.presets.split(","):
            for variant in options.variants.split(","):
                folder = options.runs / f"{preset}-{variant}-{seed}"
                train(preset, variant, seed, options.photos, folder, options.pairs, options.steps)
                results.append(json.loads((folder / "result.json").read_text(encoding="utf-8")))
                if options.out is not None:
                    options.out.write_text(report(table(results), options), encoding="utf-8")
    print(table(results).text())


if __name__ == "__main__":
    main()
