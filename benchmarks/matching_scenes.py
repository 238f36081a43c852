"""Matchers on made-up scenes that no training saw, and how fast loaders read scenes in the published layouts.

    python -m benchmarks.matching_scenes poses --photos FOLDER --models tiny,sift [--pairs 100] [--size 240 320]
    python -m benchmarks.matching_scenes loaders --photos FOLDER

poses: relative poses by OpenCV's RANSAC at 0.5 pixels, as published with LoFTR: AUC at 5, 10, 20 degrees, share of matches within the epipolar
threshold; "one look" is without the second look at images that differ in scale or turn, as published. Scenes and their textures are others than those
of training if the photographs are. loaders: pairs a second of the training loader of ScanNet (640x480) and MegaDepth (832, from 800x600) on made-up
scenes written in their layouts, with one worker and with two.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

from tests.support.scenes import write_megadepth, write_scannet

from quadtree_attention.data.matching.made_scenes import MadeScenes, SceneMaker
from quadtree_attention.data.matching.scenes import MegaDepthData, ScanNetData, ScenesData, Split
from quadtree_attention.evaluation.matchers import load_matcher
from quadtree_attention.evaluation.run import evaluate_pairs
from quadtree_attention.files import list_photographs
from quadtree_attention.table import Table

SEED = 1000  # of the scenes; recipes begin at 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("poses", "loaders"))
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--models", default="tiny,sift")
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--size", type=int, nargs=2, default=(240, 320), metavar=("HEIGHT", "WIDTH"))
    options = parser.parse_args()
    table = poses(options) if options.what == "poses" else loaders(options)
    print(table.markdown())


def poses(options: argparse.Namespace) -> Table:
    dataset = MadeScenes(list_photographs(options.photos), tuple(options.size), seed=SEED)
    rows = []
    for name in options.models.split(","):
        for align in (False,) if name == "sift" else (True, False):
            pairs = (dataset.pair(k) for k in range(options.pairs))  # the same for each
            row = evaluate_pairs(load_matcher(name, align=align), pairs, max_size=max(options.size))
            looks = "" if align or name == "sift" else ", one look"
            rows.append({"model": f"{Path(name).stem}{looks}", **row})
            print(Table(rows).text(), file=sys.stderr, flush=True)
    return Table(rows)


def loaders(options: argparse.Namespace) -> Table:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root, maker = Path(folder), SceneMaker(list_photographs(options.photos), SEED)
        write_scannet(root / "scannet", maker, 2, 4)
        write_megadepth(root / "megadepth", maker, 2, 4)
        for workers in (1, 2):
            index = root / "scannet" / "index"
            split = Split(
                root=str(root / "scannet" / "train"),
                index=str(index / "scene_data" / "train"),
                intrinsics=str(index / "intrinsics.npz"),
            )
            scannet = ScanNetData(split, split, num_workers=workers)
            split = Split(
                root=str(root / "megadepth" / "train"), index=str(root / "megadepth" / "index" / "scene_info_0.1_0.7")
            )
            for name, data in (("ScanNet", scannet), ("MegaDepth", MegaDepthData(split, split, num_workers=workers))):
                rows.append({"layout": name, "workers": workers, "pairs a second": speed(data)})
    return Table(rows)


def speed(data: ScenesData, warm: int = 10, pairs: int = 80) -> float:
    """Pairs a second of a training loader, files in the cache of the system, after ``warm`` pairs."""
    batches = iter(data.train_dataloader())
    for _ in islice(batches, warm):
        pass
    start = time.perf_counter()
    count = sum(len(batch["image0"]) for batch in islice(batches, pairs))
    return count / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
