"""Fits what a matcher's confidences mean, on pairs with known geometry that it was not trained on, and shows how well it does.

    python recipes/calibrate_matcher.py tiny OUT.safetensors --stereo FOLDER --photos FOLDER [--photos FOLDER] [--pairs 60] [--half]

FOLDER of --stereo holds a folder with left.png, right.png and disp.png (256 times the disparity, 0 = unknown) for each pair; photographs of
--photos are warped by random homographies, as `quadtree evaluate homography` does. Stereo pairs and homographies have equal weight in the fit, a
logistic regression (`predict.confidence`). With OUT left out nothing is written, and the reliability of the model's own calibration is shown.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from quadtree_attention.data.images import read_image
from quadtree_attention.data.matching.pairs import HomographyPair, StereoPair
from quadtree_attention.evaluation.metrics import disparity_errors, reprojection_errors
from quadtree_attention.evaluation.synthetic import SyntheticHomographies
from quadtree_attention.predict.alignment import best_look, whole_view
from quadtree_attention.predict.confidence import evidence
from quadtree_attention.predict.matching import Matcher
from quadtree_attention.predict.refinement import refine
from quadtree_attention.weights.files import save

RIGHT = 3.0  # pixels
RIDGE = 1e-5  # keeps factors small that the data say nothing about


def pairs(options: argparse.Namespace) -> Iterator[tuple[str, HomographyPair | StereoPair]]:
    """Pairs, and which kind each is of."""
    for folder in sorted(options.stereo.iterdir()) if options.stereo else []:
        names = {"image0": folder / "left.png", "image1": folder / "right.png", "disparity": folder / "disp.png"}
        yield "stereo", StereoPair(name=folder.name, scale=256, **names)
    for number, folder in enumerate(options.photos):
        yield from (("homographies", pair) for pair in SyntheticHomographies(folder, options.pairs, seed=number + 1))


def judged(matcher: Matcher, pair: HomographyPair | StereoPair) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For all matches of a pair with known truth: the evidence ``[M, 5]``, the network's confidence, and whether they are right."""
    images = read_image(pair.image0), read_image(pair.image1)
    views = whole_view(images[0], 640), whole_view(images[1], 640)
    look = best_look(images, views, lambda *pair: matcher.find([pair])[0], matcher.find([views])[0])
    refined = refine(look.view0.gray, look.view1.gray, *look.found)
    points0, points1 = look.view0.map_to_given(refined.points0), look.view1.map_to_given(refined.points1)
    if isinstance(pair, StereoPair):
        errors = disparity_errors(points0, points1, pair.read_disparity())
    else:
        errors = reprojection_errors(points0, points1, pair.homography)
    known = ~np.isnan(errors)
    confidence = look.found.confidence
    return evidence(confidence, refined)[known], confidence[known], errors[known] <= RIGHT


def fitted(inputs: np.ndarray, right: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Constant and factors of a logistic regression, by Newton's method."""
    inputs = np.concatenate([np.ones((len(inputs), 1)), inputs], 1)
    factors = np.zeros(inputs.shape[1])
    ridge = RIDGE * np.diag([0.0, *np.ones(len(factors) - 1)])
    for _ in range(30):
        chance = 1 / (1 + np.exp(-(inputs @ factors)))
        slope = inputs.T @ (weights * (chance - right)) + ridge @ factors
        bend = (inputs * (weights * chance * (1 - chance))[:, None]).T @ inputs + ridge
        factors = factors - np.linalg.solve(bend, slope)
    return factors


def reliability(chance: np.ndarray, right: np.ndarray) -> str:
    """A row of a table: in steps of a tenth, the share of matches that are right, and how many there are."""
    cells = []
    for low in np.arange(0, 1, 0.1):
        inside = (chance >= low) & (chance < low + 0.1 + (low > 0.85))
        cells.append(f"{right[inside].mean():.2f} ({inside.sum()})" if inside.any() else "-")
    return " | ".join(cells)


def main() -> None:
    """Fit, show, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out", nargs="?")
    parser.add_argument("--stereo", type=Path)
    parser.add_argument("--photos", type=Path, action="append", default=[])
    parser.add_argument("--pairs", type=int, default=60, help="homographies of each folder")
    parser.add_argument("--half", action="store_true", help="store float16")
    options = parser.parse_args()
    matcher = Matcher.from_pretrained(options.model, device="cpu")
    found: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
    for kind, pair in pairs(options):
        found.setdefault(kind, []).append(judged(matcher, pair))
        print(f"{kind} {pair.name}: {len(found[kind][-1][2])} matches", flush=True)
    if not found:
        parser.error("nothing to fit on; give --stereo or --photos")
    kinds = {kind: tuple(map(np.concatenate, zip(*rows, strict=True))) for kind, rows in found.items()}
    inputs, _, right = (np.concatenate([parts[k] for parts in kinds.values()]) for k in range(3))
    weights = np.concatenate([np.full(len(parts[2]), 1 / len(kinds) / len(parts[2])) for parts in kinds.values()])
    calibration = fitted(inputs, right, weights) if options.out else np.array(matcher.model.config.calibration)
    print("calibration:", ", ".join(f"{value:.4f}" for value in calibration))
    tenths = " | ".join(f".{k}" for k in range(10))
    print(f"\n| confidence from | {tenths} |\n| --- |{' ---: |' * 10}")
    for kind, (what, raw, good) in kinds.items():
        print(f"| {kind}, network | {reliability(raw, good)} |")
        if len(calibration):
            chance = 1 / (1 + np.exp(-(calibration[0] + what @ calibration[1:])))
            print(f"| {kind}, calibrated | {reliability(chance, good)} |")
    if options.out:
        matcher.model.config = replace(
            matcher.model.config, calibration=tuple(round(float(value), 4) for value in calibration)
        )
        save(matcher.model, options.out, half=options.half)


if __name__ == "__main__":
    main()
