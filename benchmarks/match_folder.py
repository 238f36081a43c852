"""A made-up scene, from images to cameras: quadtree match-folder's keypoints for several radii, and COLMAP's mapper on them.

    python benchmarks/match_folder.py --opencv DATA --out benchmarks/results/match_folder.md

--opencv is the folder usr/share/doc/opencv-doc/examples/data of the Debian package opencv-doc, whose photographs hang in the scene: three walls,
a floor and three boards, seen by 8 cameras along an arc. Cameras found are compared with the true ones after the similarity that fits best.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from datetime import date
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import torch
from PIL import Image

from quadtree_attention.predict.folder import all_pairs, match_folder
from quadtree_attention.predict.matching import Matcher
from quadtree_attention.table import Table

SIZE = (360, 480)  # height, width
FOCAL = 1.2 * 480  # what COLMAP guesses: the mapper still has to find it
VIEWS = 8


class Remembered:
    """A matcher that matches each pair once: the radii differ in what comes after."""

    def __init__(self, matcher: Matcher) -> None:
        self.matcher, self.found = matcher, {}

    def match(self, image0, image1, **options):
        key = (hash(image0.tobytes()), hash(image1.tobytes()))
        if key not in self.found:
            self.found[key] = self.matcher.match(image0, image1, **options)
        return self.found[key]


def views(photos: Path, folder: Path) -> list[np.ndarray]:
    """Render the images ``0.png``, ``1.png``, ...; returns world to camera, ``[4, 4]`` each."""
    from quadtree_attention.data.matching.render import Rectangle, Scene, look_at

    def board(corner, across, down, name):
        texture = np.asarray(Image.open(photos / name).convert("L").resize((512, 512)))
        return Rectangle(*(np.array(v, float) for v in (corner, across, down)), texture)

    place = Scene(
        [
            board((-4, 6, 3), (8, 0, 0), (0, 0, -4), "graf1.png"),
            board((-4, 6, -1), (8, 0, 0), (0, -5, 0), "fruits.jpg"),
            board((-4, 1, 3), (0, 5, 0), (0, 0, -4), "home.jpg"),
            board((4, 6, 3), (0, -5, 0), (0, 0, -4), "rubberwhale1.png"),
            board((-1.6, 4, 1.2), (1.1, 0.3, 0), (0, 0.1, -1.1), "board.jpg"),
            board((0.6, 3.5, 0.9), (1.1, -0.4, 0.1), (0, 0.1, -1.1), "baboon.jpg"),
            board((-0.5, 4.6, 2.2), (1.2, 0, 0), (0, 0.2, -0.9), "aero1.jpg"),
        ]
    )
    K = np.array([[FOCAL, 0, (SIZE[1] - 1) / 2], [0, FOCAL, (SIZE[0] - 1) / 2], [0, 0, 1]])
    poses = []
    for k in range(VIEWS):
        centre = np.array([-1.2 + 0.35 * k, -2 + 0.15 * (k % 3), 0.4 + 0.2 * (k % 2)])
        poses.append(look_at(centre, np.array([0.05 * k - 0.2, 5, 0.6])))
        Image.fromarray(place.render(K, poses[-1], SIZE).image).save(folder / f"{k}.png")
    return poses


def measure(folder: Path, database: Path, truth: list[np.ndarray]) -> dict:
    """The mapper's largest model beside the true cameras."""
    options = pycolmap.IncrementalPipelineOptions(min_model_size=3, random_seed=0, num_threads=1, extract_colors=False)
    with tempfile.TemporaryDirectory() as scratch:
        models = pycolmap.incremental_mapping(database, folder, scratch, options)
    model = max(models.values(), key=lambda m: m.num_reg_images())
    images = {int(Path(image.name).stem): image for image in model.images.values()}
    found = {k: image.cam_from_world().rotation.matrix() for k, image in images.items()}
    centres = np.array([images[k].projection_center() for k in images])
    true = np.array([-truth[k][:3, :3].T @ truth[k][:3, 3] for k in images])
    c, t = centres - centres.mean(0), true - true.mean(0)
    U, S, Vt = np.linalg.svd(t.T @ c)  # Umeyama's fit
    D = np.diag([1, 1, np.sign(np.linalg.det(U @ Vt))])
    fitted = np.trace(np.diag(S) @ D) / (c**2).sum() * c @ (U @ D @ Vt).T
    turned = [
        np.rad2deg(np.linalg.norm(cv2.Rodrigues(found[b] @ found[a].T @ (truth[b][:3, :3] @ truth[a][:3, :3].T).T)[0]))
        for a, b in combinations(images, 2)
    ]
    return {
        "images": f"{model.num_reg_images()} of {VIEWS}",
        "points": model.num_points3D(),
        "track": f"{model.compute_mean_track_length():.1f}",
        "reprojection, px": f"{model.compute_mean_reprojection_error():.2f}",
        "centres off, mm": f"{1000 * np.linalg.norm(fitted - t, axis=1).mean():.1f}",
        "rotations off, degrees": f"{np.mean(turned):.3f}",
        "focal": f"{next(iter(model.cameras.values())).focal_length:.1f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--opencv", type=Path, required=True)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--radii", default="0.5,1,2,4")
    parser.add_argument("--machine", help="its name in the report", default=platform.processor())
    parser.add_argument("--out", type=Path, help=".md")
    options = parser.parse_args()
    pycolmap.logging.minloglevel = pycolmap.logging.Level.ERROR.value
    rows = []
    matcher = Remembered(Matcher.from_pretrained(options.model))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "images"
        folder.mkdir()
        truth = views(options.opencv, folder)
        pairs = all_pairs([f"{k}.png" for k in range(VIEWS)])
        for radius in map(float, options.radii.split(",")):
            database = Path(scratch) / f"{radius}.db"
            done = match_folder(folder, pairs, database, matcher=lambda: matcher, radius=radius, cameras="single")
            row = {"radius": f"{radius:g}", "matches": done.matches, "verified": done.verified}
            rows.append({**row, **measure(folder, database, truth)})
            print(rows[-1], flush=True)
    table = Table(rows)
    print(table.text())
    if options.out is not None:
        span = np.ptp([-p[:3, :3].T @ p[:3, 3] for p in truth], axis=0).max()
        options.out.write_text(
            f"""# From a folder of images to cameras

- date: {date.today()}
- machine: {options.machine}; Python {platform.python_version()}, torch {torch.__version__}, pycolmap {pycolmap.__version__}
- command: `python benchmarks/match_folder.py --opencv DATA --out benchmarks/results/match_folder.md`
- {VIEWS} made-up views of {SIZE[1]}x{SIZE[0]} pixels, focal length {FOCAL:g}, cameras {span:.2f} m apart, {len(pairs)} pairs, model
  {options.model}; COLMAP's incremental mapper, one camera for all, its focal length and distortion refined
- radius: `--radius`, within which points of an image become one keypoint; track: mean number of images that a point is seen in

{table.markdown()}
""",
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
