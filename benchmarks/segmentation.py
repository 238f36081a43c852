"""Semantic FPN on quadtree attention against the same on spatial reduction: garments pasted over photographs, masks known exactly.

    python benchmarks/segmentation.py --garments FOLDER --photos PHOTOS --runs runs/segment --out benchmarks/results/segmentation

FOLDER/FashionMNIST/raw holds the four files of Fashion-MNIST as torchvision keeps them (of the Debian package dataset-fashion-mnist, unpacked);
PHOTOS is any folder of photographs without garments, such as the images of experiencor/raccoon_dataset. The garments become cut-outs once, in
the folder of the runs: 600 of each of the ten kinds to train on and 100 to validate, of the training images, and 200 of the test images to
test. Photographs are made smaller once; in the order of their names, 70 % are for training, 15 % for validation and 15 % for the test. So no garment
and no photograph of the test was seen before it.

Every run is `quadtree fit` on recipes/segment_tiny_garments.yaml, one thread each. Runs that are finished are left as they are, others go on from
their last checkpoint. Writes OUT.md, OUT_curves.png and OUT_examples.png: of the first test images, truth and what each network found.
"""

from __future__ import annotations

import argparse
import copy
import csv
from datetime import date
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
import yaml
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torchmetrics.classification import MulticlassConfusionMatrix
from torchvision.datasets import FashionMNIST

from quadtree_attention.bench.cpu import machine
from quadtree_attention.data.recognition.composites import CompositeData, Pasting
from quadtree_attention.files import atomic_write, list_photographs
from quadtree_attention.models.segmentation import SemanticFPN
from quadtree_attention.predict.segmentation import class_colors
from quadtree_attention.table import Table
from quadtree_attention.tasks.segmentation import segmentation_loss, segmentation_scores
from quadtree_attention.viz.drawing import save_picture
from quadtree_attention.viz.segmentation import tinted
from quadtree_attention.weights import load
from support.training import fit

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes" / "segment_tiny_garments.yaml"
VARIANTS = ("quadtree", "spatial reduction")
OURS = ("levels", "topk", "variant", "value_act")  # options that timm's PVTv2 does not have
CUTOUTS = {"train": (True, 0, 600), "validation": (True, 600, 700), "test": (False, 0, 200)}  # of each class
SHORT_SIDE = 200  # of the shrunk photographs
KINDS = (
    "top",
    "trousers",
    "top",
    "dress",
    "top",
    "shoe",
    "top",
    "shoe",
    "bag",
    "shoe",
)  # of Fashion-MNIST's ten labels


def cut_out(garments: Path, folder: Path) -> None:
    """Garments as images with alpha, in one folder a split and class; nothing where that has been done."""
    if folder.exists():
        return
    part = folder.with_name(folder.name + ".part")
    for split, (train, first, end) in CUTOUTS.items():
        data = FashionMNIST(str(garments), train=train)
        for label, name in enumerate(KINDS):
            place = part / split / name
            place.mkdir(parents=True, exist_ok=True)
            for n, image in enumerate(data.data[data.targets == label][first:end].numpy()):
                gray = cv2.resize(np.pad(image, 2), (96, 96), interpolation=cv2.INTER_CUBIC)
                inside = cv2.morphologyEx(np.uint8(gray > 16), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
                alpha = cv2.GaussianBlur(255 * inside, (0, 0), 1)
                cv2.imwrite(str(place / f"{label}_{n:03d}.png"), np.dstack([gray, gray, gray, alpha]))
    part.rename(folder)


def shrink(photos: Path, folder: Path) -> None:
    """Copies of photographs whose shorter side has 200 pixels, in one folder a split; nothing where that has been done."""
    if folder.exists():
        return
    part, paths = folder.with_name(folder.name + ".part"), list_photographs(photos)
    for n, path in enumerate(paths):
        split = "train" if n < 0.7 * len(paths) else "validation" if n < 0.85 * len(paths) else "test"
        (part / split).mkdir(parents=True, exist_ok=True)
        image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        factor = SHORT_SIDE / min(image.size)
        size = (round(image.width * factor), round(image.height * factor))
        image.resize(size).save(part / split / f"{n:04d}.jpg", quality=95)
    part.rename(folder)


def arguments_of(recipe: dict[str, Any], variant: str) -> dict[str, Any]:
    """Arguments of the recipe's model for one row of the table."""
    arguments = copy.deepcopy(recipe["model"]["init_args"])
    if variant == "spatial reduction":
        options = arguments["options"]
        ratios = [2 ** (levels - 1) for levels in options["levels"]]  # as coarse as the tree's coarsest level
        arguments["backbone"] = "pvt_v2_b0"
        arguments["options"] = {k: v for k, v in options.items() if k not in OURS} | {"sr_ratios": ratios}
    return arguments


def train(recipe: dict[str, Any], variant: str, data: dict[str, str], folder: Path) -> None:
    """One run, unless it is finished."""
    if (folder / "finished").exists():
        return
    config = copy.deepcopy(recipe)
    config["model"]["init_args"] = arguments_of(recipe, variant)
    config["data"]["init_args"] |= data
    fit(config, folder)
    (folder / "finished").touch()


def evaluate(model: SemanticFPN, data: CompositeData) -> dict[str, Any]:
    """Scores on the test images."""
    confusion = MulticlassConfusionMatrix(len(model.config.labels), ignore_index=255)
    losses = []
    with torch.inference_mode():
        for images, masks in data.test_dataloader():
            logits, truth = model(torch.stack(images)), torch.stack(masks)
            confusion.update(logits.argmax(1), truth)
            losses.append(segmentation_loss(logits, truth).item())
    return {**segmentation_scores(confusion.compute()), "loss": float(np.mean(losses))}


def curves(folders: dict[str, Path], path: Path) -> None:
    """Loss of training (means of ten logged steps) and mean IoU of validation over steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for variant, folder in folders.items():
        rows = []
        for log in sorted(folder.glob("log/*/metrics.csv")):
            with log.open() as file:
                rows += list(csv.DictReader(file))
        loss = sorted({int(r["step"]): float(r["train/loss"]) for r in rows if r.get("train/loss")}.items())
        miou = sorted({int(r["step"]): float(r["val/miou"]) for r in rows if r.get("val/miou")}.items())
        means = [np.mean(loss[n : n + 10], 0) for n in range(0, len(loss) - 9, 10)]
        left.plot(*zip(*means, strict=True), label=variant)
        right.plot(*zip(*miou, strict=True), marker="o", label=variant)
    left.set(xlabel="step", ylabel="training loss", yscale="log")
    right.set(xlabel="step", ylabel="validation mIoU")
    for axes in (left, right):
        axes.grid(True, alpha=0.25)
        axes.legend()
    figure.savefig(path, dpi=120)


def examples(models: dict[str, SemanticFPN], data: CompositeData, path: Path, count: int = 6) -> None:
    """Of the first test images: the image, the truth, what each network found; names of the classes below."""
    dataset, columns = data._dataset("test"), []
    names = next(iter(models.values())).config.labels
    for n in range(count):
        raw, truth = dataset.dataset[n]
        seen = dataset[n][0][None]
        with torch.inference_mode():
            found = [model(seen)[0].argmax(0).to(torch.uint8).numpy() for model in models.values()]
        big = F.interpolate(torch.from_numpy(raw).permute(2, 0, 1)[None].float(), scale_factor=1.5)[0]
        big = big.permute(1, 2, 0).numpy()
        columns.append(
            np.vstack([big.astype(np.uint8), *(tinted(big, labels, names, 0.75) for labels in (truth, *found))])
        )
    sheet = np.hstack(columns)
    legend = np.full((26, sheet.shape[1], 3), 255, np.uint8)
    image = Image.fromarray(np.vstack([sheet, legend]))
    draw, x = ImageDraw.Draw(image), 6
    for name, color in list(zip(names, class_colors(names).tolist(), strict=True))[1:]:
        draw.rectangle((x, sheet.shape[0] + 7, x + 12, sheet.shape[0] + 19), tuple(color))
        draw.text((x + 17, sheet.shape[0] + 13), name, "black", ImageFont.load_default(13), anchor="lm")
        x += 32 + int(ImageFont.load_default(13).getlength(name))
    save_picture(np.asarray(image), path)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--garments", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="with commas")
    parser.add_argument("--out", type=Path, help="beginning of the names of the results")
    options = parser.parse_args()
    recipe = yaml.safe_load(RECIPE.read_text())
    torch.set_num_threads(1)
    cutouts = options.runs / "cutouts"
    cut_out(options.garments, cutouts)
    photos = options.runs / f"photos{SHORT_SIDE}"
    shrink(options.photos, photos)
    data = {"cutouts": str(cutouts), "photos": str(photos)}
    folders = {variant: options.runs / variant.replace(" ", "_") for variant in options.variants.split(",")}
    for variant, folder in folders.items():
        train(recipe, variant, data, folder)
    settings = {**recipe["data"]["init_args"], **data, "num_workers": 0}
    made = CompositeData(**{**settings, "pasting": Pasting(**settings["pasting"])})
    models = {variant: load(folder / "last.ckpt", "segmenter") for variant, folder in folders.items()}
    rows = []
    for variant, model in models.items():
        scores = evaluate(model, made)
        row = {"attention": variant, "parameters": sum(p.numel() for p in model.parameters())}
        row |= {"mIoU, %": f"{100 * scores['miou']:.1f}", "pixel accuracy, %": f"{100 * scores['accuracy']:.1f}"}
        row |= {name: f"{100 * iou:.1f}" for name, iou in zip(model.config.labels, scores["iou"], strict=True)}
        rows.append(row)
    table = Table(rows)
    print(table.markdown())
    if options.out is None:
        return
    images = {name: options.out.with_name(f"{options.out.name}_{name}.png") for name in ("curves", "examples")}
    curves(folders, images["curves"])
    examples(models, made, images["examples"])
    steps, size, count = recipe["trainer"]["max_steps"], settings["size"], settings["test_length"]
    lines = [
        "# Semantic FPN on quadtree attention against spatial reduction",
        "",
        f"{date.today()}, one core of {machine()['machine'].partition(',')[0]}; {steps} steps of {settings['batch_size']} images of "
        f"{size[0]}x{size[1]} pixels; one seed; "
        f"averages of the weights. Measured on {count} composites of garments and photographs that training never saw.",
        "",
        "`python benchmarks/segmentation.py --garments FOLDER --photos PHOTOS --runs RUNS --out benchmarks/results/segmentation`; "
        "what is what: the head of benchmarks/segmentation.py. Columns after the accuracy: the IoU of each class, %.",
        "",
        table.markdown(),
        "",
        f"![Training loss and validation mIoU over steps]({images['curves'].name})",
        "",
        f"Test images, the truth, and what {' and '.join(models)} found, from top to bottom:",
        "",
        f"![Test images, truth and results]({images['examples'].name})",
    ]
    with atomic_write(options.out.with_suffix(".md")) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
