"""Made-up scenes as files, in the layouts of ScanNet, MegaDepth and COLMAP: what readers and trainings are tested on."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from quadtree_attention.data.matching.made_scenes import Cameras, Motion, Place, SceneMaker, random_cameras
from quadtree_attention.data.matching.render import Rendering
from quadtree_attention.extras import require

_QUALITY = [cv2.IMWRITE_JPEG_QUALITY, 95]


class Shot(NamedTuple):
    """A pair of a scene: two cameras and what they see."""

    place: Place
    cameras: Cameras
    views: tuple[Rendering, Rendering]

    @property
    def poses(self) -> tuple[np.ndarray, np.ndarray]:
        """World to camera ``[4, 4]`` of both."""
        return self.cameras.pose0, self.cameras.pose1


def shots(
    maker: SceneMaker, scene: int, pairs: int, size: tuple[int, int], motion: Motion | None = None
) -> Iterator[Shot]:
    """So many pairs of one scene; ``size`` (height, width); the same for the same numbers. The cameras of all have the same intrinsics."""
    rng = np.random.default_rng([maker.seed, 2, scene])
    motion = motion or Motion(field=(1.1, 1.1))
    place = maker(scene)
    for _ in range(pairs):
        cameras = random_cameras(rng, place, size, motion)
        first, second = (place.scene.render(cameras.K, pose, size) for pose in (cameras.pose0, cameras.pose1))
        yield Shot(place, cameras, (first, second))


def write_scannet(
    folder: str | Path, maker: SceneMaker, scenes: int, pairs: int, size: tuple[int, int] = (480, 640)
) -> None:
    """ScanNet as LoFTR's training expects it, under ``folder``: train/sceneSSSS_00/, index/scene_data/train/, its list, index/intrinsics.npz.

    Intrinsics are written for 640 x 480, whatever the size of the images is.
    """
    folder = Path(folder)
    index = folder / "index" / "scene_data"
    for sub in ("train", "train_list"):
        (index / sub).mkdir(parents=True, exist_ok=True)
    intrinsics, names = {}, []
    for number in range(scenes):
        scene = f"scene{number:04d}_00"
        for sub in ("color", "depth", "pose"):
            (folder / "train" / scene / sub).mkdir(parents=True, exist_ok=True)
        rows, scores = [], []
        for k, shot in enumerate(shots(maker, number, pairs, size)):
            for frame, view, pose in zip((20 * k, 20 * k + 10), shot.views, shot.poses, strict=True):
                at = folder / "train" / scene
                _write(at / "color" / f"{frame}.jpg", view.image, _QUALITY)
                _write(at / "depth" / f"{frame}.png", np.rint(view.depth * 1000).astype(np.uint16))
                np.savetxt(at / "pose" / f"{frame}.txt", np.linalg.inv(pose))
            rows.append((number, 0, 20 * k, 20 * k + 10))
            scores.append(shot.cameras.overlap)
            x, y = 640 / size[1], 480 / size[0]
            intrinsics[scene] = np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]]) @ shot.cameras.K
        np.savez(index / "train" / f"{scene}.npz", name=np.array(rows, np.uint16), score=np.array(scores, np.float32))
        names.append(f"{scene}.npz")
    np.savez(folder / "index" / "intrinsics.npz", **intrinsics)
    (index / "train_list" / "scannet_all.txt").write_text("\n".join(names) + "\n", encoding="utf-8")


def write_megadepth(
    folder: str | Path,
    maker: SceneMaker,
    scenes: int,
    pairs: int,
    size: tuple[int, int] = (600, 800),
    undistorted: bool = True,
) -> None:
    """MegaDepth as LoFTR's training expects it, under ``folder``: train/, index/scene_info_0.1_0.7/, index/trainvaltest_list/train_list.txt.

    Every second pair is upright. undistorted: images in D2-Net's folder Undistorted_SfM, which the index names; False: in MegaDepth_v1's own.
    """
    h5py = require("h5py", "scenes")
    folder = Path(folder)
    for sub in ("scene_info_0.1_0.7", "trainvaltest_list"):
        (folder / "index" / sub).mkdir(parents=True, exist_ok=True)
    names = [f"{number:04d}" for number in range(scenes)]
    for number, name in enumerate(names):
        info: dict = {key: [] for key in ("image_paths", "depth_paths", "intrinsics", "poses", "pair_infos")}
        upright = [shots(maker, number, pairs, shape) for shape in (size, size[::-1])]
        for k in range(pairs):
            shot = next(upright[k % 2])
            for view, pose in zip(shot.views, shot.poses, strict=True):
                stem = f"{len(info['poses'])}_o"
                dense = f"phoenix/S6/zl548/MegaDepth_v1/{name}/dense0"
                info["image_paths"].append(f"Undistorted_SfM/{name}/images/{stem}.jpg")
                info["depth_paths"].append(f"{dense}/depths/{stem}.h5")
                info["intrinsics"].append(
                    shot.cameras.K + np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
                )  # as COLMAP has them
                info["poses"].append(pose)
                image = info["image_paths"][-1] if undistorted else f"{dense}/imgs/{stem}.jpg"
                image, depth = folder / "train" / image, folder / "train" / info["depth_paths"][-1]
                image.parent.mkdir(parents=True, exist_ok=True)
                depth.parent.mkdir(parents=True, exist_ok=True)
                _write(image, view.image, _QUALITY)
                with h5py.File(depth, "w") as file:
                    file["depth"] = view.depth
            info["pair_infos"].append((np.array([2 * k, 2 * k + 1]), shot.cameras.overlap, np.zeros(4)))
        for key in ("image_paths", "depth_paths", "intrinsics", "poses"):
            column = np.empty(len(info[key]), object)
            column[:] = info[key]
            info[key] = column
        (folder / "index" / "scene_info_0.1_0.7" / f"{name}.npz").write_bytes(pickle.dumps(info))
    text = "\n".join(names) + "\n"
    (folder / "index" / "trainvaltest_list" / "train_list.txt").write_text(text, encoding="utf-8")


def write_colmap(
    folder: str | Path,
    maker: SceneMaker,
    scene: int,
    pairs: int,
    size: tuple[int, int] = (480, 640),
    points: int = 500,
    dense: bool = False,
) -> None:
    """One scene as a COLMAP model without distortion: images/, sparse/ as text, with ``dense`` also stereo/depth_maps/.

    points: of the model, at random pixels of each image; an image has those that it shows of both.
    """
    folder = Path(folder)
    rng = np.random.default_rng([maker.seed, 3, scene])
    for sub in ("images", "sparse", "stereo/depth_maps") if dense else ("images", "sparse"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    cameras: list[str] = []
    images: list[str] = []
    model: list[str] = []
    for k, shot in enumerate(shots(maker, scene, pairs, size)):
        K = shot.cameras.K
        seen: tuple[list, list] = ([], [])
        numbers = range(2 * k + 1, 2 * k + 3)
        for point in (
            p for pose, view in zip(shot.poses, shot.views, strict=True) for p in _points(rng, K, pose, view, points)
        ):
            track = []
            for side, (pose, view) in enumerate(zip(shot.poses, shot.views, strict=True)):
                u, v, w = K @ (pose @ point)[:3]
                column, row = round(u / w), round(v / w)
                inside = w > 0 and 0 <= column < size[1] and 0 <= row < size[0]
                if inside and abs(view.depth[row, column] - w) < 0.02 * w:
                    track += [numbers[side], len(seen[side])]
                    seen[side].append((u / w + 0.5, v / w + 0.5, len(model) + 1))
            model.append(f"{len(model) + 1} {_text(point[:3])} 128 128 128 0.0 {' '.join(map(str, track))}")
        for number, view, pose, spots in zip(numbers, shot.views, shot.poses, seen, strict=True):
            name = f"{number:04d}.jpg"
            _write(folder / "images" / name, view.image, _QUALITY)
            cameras.append(
                f"{number} PINHOLE {size[1]} {size[0]} {_text([K[0, 0], K[1, 1], K[0, 2] + 0.5, K[1, 2] + 0.5])}"
            )
            images.append(f"{number} {_text(_quaternion(pose[:3, :3]))} {_text(pose[:3, 3])} {number} {name}")
            images.append(" ".join(f"{_text(spot[:2])} {spot[2]}" for spot in spots))
            if dense:
                depth = require("pycolmap", "scenes").DepthMap.from_array(view.depth, 0.0, float(view.depth.max()))
                depth.write(folder / "stereo" / "depth_maps" / f"{name}.geometric.bin")
    for name, lines in (("cameras", cameras), ("images", images), ("points3D", model)):
        (folder / "sparse" / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _points(rng: np.random.Generator, K: np.ndarray, pose: np.ndarray, view: Rendering, count: int) -> np.ndarray:
    """Points of the world ``[M, 4]``, the last entry 1, that a view shows at ``count`` random pixels."""
    y, x = (rng.integers(side, size=count) for side in view.depth.shape)
    z = view.depth[y, x].astype(np.float64)
    points = np.linalg.inv(K) @ (np.stack([x, y, np.ones(count)]) * z)
    return (np.linalg.inv(pose) @ np.concatenate([points, np.ones((1, count))]))[:, z > 0].T


def _quaternion(R: np.ndarray) -> np.ndarray:
    """(w, x, y, z) of a rotation ``[3, 3]``, by the eigenvector of Bar-Itzhack's matrix."""
    (a, b, c), (d, e, f), (g, h, i) = R
    matrix = np.array(
        [
            [a - e - i, d + b, g + c, h - f],
            [d + b, e - a - i, h + f, c - g],
            [g + c, h + f, i - a - e, d - b],
            [h - f, c - g, d - b, a + e + i],
        ]
    )
    x, y, z, w = np.linalg.eigh(matrix)[1][:, -1]
    return np.array([w, x, y, z])


def _text(numbers: np.ndarray | list) -> str:
    return " ".join(repr(float(number)) for number in numbers)


def _write(path: Path, image: np.ndarray, options: list[int] | None = None) -> None:
    if not cv2.imwrite(str(path), image, options or []):
        raise OSError(f"{path} cannot be written")
