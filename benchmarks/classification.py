"""Quadtree attention against spatial reduction: the same PVTv2, recipe and steps, several seeds.

    python benchmarks/classification.py clothing PHOTOS --runs runs/clothing --out benchmarks/results/clothing.md
    python benchmarks/classification.py fashion FOLDER --runs runs/fashion --out benchmarks/results/fashion.md

PHOTOS is clothing-dataset-small (its photographs are made smaller once, in the folder of the runs), FOLDER what recipes/classify_fashion_mnist.yaml
describes. Every run is `quadtree fit` on a recipe, in a process of its own, `--jobs` of them at a time with one thread each. Runs that are
finished are left as they are, others go on from their last checkpoint.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image, ImageOps

from quadtree_attention.data.recognition.classification import ClassificationData
from quadtree_attention.table import Table
from quadtree_attention.weights import load
from support.training import fit

ROOT = Path(__file__).parent.parent
RECIPES = {"clothing": "classify_tiny_clothing", "fashion": "classify_fashion_mnist"}
SHORT_SIDE = 112  # of the shrunk photographs, for networks that see 64 to 96 pixels
OURS = ("levels", "topk", "variant", "value_act")  # options that timm's PVTv2 does not have


def model_of(recipe: dict[str, Any], variant: str) -> dict[str, Any]:
    """Arguments of the recipe's model for one row of the table."""
    arguments = copy.deepcopy(recipe["model"]["init_args"])
    options = arguments["options"]
    if variant == "spatial reduction":
        ratios = [2 ** (levels - 1) for levels in options["levels"]]  # as coarse as the tree's coarsest level
        arguments["model"] = "pvt_v2_b0"
        arguments["options"] = {k: v for k, v in options.items() if k not in OURS} | {"sr_ratios": ratios}
    elif variant.startswith("quadtree"):  # "quadtree", "quadtree topk=16 level_rate=10"
        for change in variant.split()[1:]:
            name, value = change.split("=")
            (arguments if name in arguments or name == "level_rate" else options)[name] = yaml.safe_load(value)
    else:
        raise SystemExit(
            f"unknown variant {variant!r}, expected quadtree, quadtree NAME=VALUE ..., or spatial reduction"
        )
    return arguments


def train(recipe: dict[str, Any], variant: str, seed: int, root: str, folder: Path) -> None:
    """One run, unless its result is there."""
    if (folder / "result.json").exists():
        return
    config = copy.deepcopy(recipe)
    config["seed_everything"] = seed
    config["model"]["init_args"] = model_of(recipe, variant) | {"seed": seed}
    config["data"]["init_args"] |= {"root": root, "seed": seed, "num_workers": 0}
    config["trainer"]["limit_val_batches"] = 0
    last = fit(config, folder)
    result = {"variant": variant, "seed": seed, **evaluate(last, config["data"]["init_args"])}
    (folder / "result.json").write_text(json.dumps(result) + "\n")
    print(result, flush=True)


def evaluate(checkpoint: Path, data: dict[str, Any]) -> dict[str, float]:
    """Shares of right answers of the averaged weights, and how many parameters there are."""
    model = load(checkpoint, "classifier")
    module = ClassificationData(**data)
    out: dict[str, float] = {"parameters": sum(p.numel() for p in model.parameters())}
    splits = {"val": module.val_dataloader(), "test": module.test_dataloader()}
    if data.get("dataset", "").startswith("torch/"):  # has no third split
        del splits["val"]
    for name, loader in splits.items():
        with torch.inference_mode():
            right = torch.cat([model(images).argmax(1) == target for images, target in loader])
        out[name], out[f"{name}_images"] = right.float().mean().item(), len(right)
    return out


def table(results: list[dict[str, Any]], settings: dict[str, Any]) -> Table:
    """Means and spreads over the seeds."""
    rows = []
    for variant in dict.fromkeys(result["variant"] for result in results):
        mine = [result for result in results if result["variant"] == variant]
        row: dict[str, Any] = {"attention": variant, "parameters": mine[0]["parameters"], "runs": len(mine)}
        for split in ("val", "test") if "val" in mine[0] else ("test",):
            values = [100 * result[split] for result in mine]
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            row[f"{split} top-1, %"] = f"{statistics.mean(values):.2f}{spread}"
        row["single runs, test"] = ", ".join(f"{100 * result['test']:.1f}" for result in mine)
        rows.append(row)
    return Table(rows, settings)


def shrink(photos: Path, folder: Path) -> None:
    """Copies of photographs whose shorter side has 75 pixels, where there are none yet."""
    for path in sorted(photos.glob("*/*/*.jpg")):
        out = folder / path.relative_to(photos)
        if out.exists():
            continue
        out.parent.mkdir(parents=True, exist_ok=True)
        image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        factor = SHORT_SIDE / min(image.size)
        size = (round(image.width * factor), round(image.height * factor))
        image.resize(size, Image.Resampling.BICUBIC).save(out, quality=95)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", choices=RECIPES)
    parser.add_argument("root", type=Path)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument(
        "--variants", nargs="+", default=["quadtree", "spatial reduction"], help="one row of the table each"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, help=".md, .json or .csv")
    arguments = parser.parse_args()
    recipe = yaml.safe_load((ROOT / "recipes" / f"{RECIPES[arguments.data]}.yaml").read_text())
    root = arguments.root
    if arguments.data == "clothing":
        root = arguments.runs / f"photos{SHORT_SIDE}"
        shrink(arguments.root, root)
    torch.set_num_threads(1)
    variants = arguments.variants
    jobs = [(variant, seed) for seed in range(arguments.seeds) for variant in variants]
    folders = [arguments.runs / f"{variant.replace(' ', '_')}-{seed}" for variant, seed in jobs]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(lambda job, folder: train(recipe, *job, str(root), folder), jobs, folders))
    results = [json.loads((folder / "result.json").read_text()) for folder in folders]
    results.sort(key=lambda result: variants.index(result["variant"]))
    found = table(results, {"recipe": recipe})
    print(found.text())
    if arguments.out is not None:
        found.save(arguments.out)


if __name__ == "__main__":
    main()
