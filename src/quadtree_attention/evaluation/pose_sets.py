"""Sets of image pairs with known poses: ScanNet-1500, MegaDepth-1500, and COLMAP models.

Like lists, a set is checked when it is read: what is missing or malformed ends in one line that names the file and the pair.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..data.arrays import camera_matrix, entries, entry, pose_matrix, read_arrays
from ..data.lists import existing, folder_with, lines_of, nonempty
from ..data.matching.layouts import overlapping, read_pose
from ..data.matching.pairs import PosePair
from ..errors import InputError


def scannet1500(root: str | Path) -> list[PosePair]:
    """The ScanNet-1500 test pairs in the layout published with LoFTR.

    An index folder holds test.npz ('name' [N, 4]: scene, sub-scene, frame 0, frame 1; 'rel_pose' [N, 12]: T_0to1 row by
    row) and intrinsics.npz (scene -> K [3, 3], for 640 x 480); images are sceneSSSS_UU/color/FRAME.jpg. Where
    sceneSSSS_UU/pose/FRAME.txt (camera to world) exists for both frames it is used, as published. root: the folder with
    all of these, or a checkout of LoFTR with its data linked. Images are resized to 640 x 480 as published, without
    averaging.
    """
    root = Path(root)
    index = folder_with(root, ("", "scannet_test_1500", "assets/scannet_test_1500"), "test.npz")
    test, intrinsics = read_arrays(index / "test.npz"), read_arrays(existing("intrinsics.npz", index, str(index)))
    names = np.asarray(entry(test, "name", index / "test.npz"))
    if names.ndim != 2 or names.shape[1] != 4 or not len(names) or names.dtype.kind not in "iu":
        raise InputError(
            f"{index / 'test.npz'}: 'name' has shape {names.shape} of {names.dtype}, expected whole numbers [N, 4]: scene, sub-scene, two frames"
        )
    one = "scene{:04d}_{:02d}/color/{}.jpg".format(*names[0][:3])
    images = folder_with(root, ("", "scannet_test_1500", "data/scannet/test", "scans_test"), one)
    pairs = []
    for row, (scene, sub, *frames) in enumerate(names.tolist()):
        where, scene = f"{index / 'test.npz'}: pair {row}", f"scene{scene:04d}_{sub:02d}"
        image0, image1 = (existing(f"{scene}/color/{f}.jpg", images, where) for f in frames)
        poses = [images / scene / "pose" / f"{f}.txt" for f in frames]
        if all(p.is_file() for p in poses):
            first, second = (read_pose(p) for p in poses)
            T = np.linalg.inv(second) @ first
        else:
            given = entries(test, "rel_pose", index / "test.npz")
            if len(given) != len(names):
                raise InputError(
                    f"{index / 'test.npz'}: 'rel_pose' has {len(given)} entries, expected {len(names)}, as many as 'name'"
                )
            T = pose_matrix(given[row], f"{where} of 'rel_pose'")
        K = camera_matrix(entry(intrinsics, scene, index / "intrinsics.npz"), f"{index / 'intrinsics.npz'}: {scene}")
        pairs.append(
            PosePair(
                name=f"{scene} {frames[0]} {frames[1]}",
                image0=image0,
                image1=image1,
                size0=(640, 480),
                size1=(640, 480),
                smooth=False,
                K0=K,
                K1=K,
                T_0to1=T,
            )
        )
    return pairs


def megadepth1500(root: str | Path) -> list[PosePair]:
    """The MegaDepth-1500 test pairs in the layout published with LoFTR.

    An index folder holds the scenes' .npz and megadepth_test_1500.txt with their names, one a line (without it all
    .npz are read). A scene has image_paths, intrinsics [3, 3] of the images as stored, poses [4, 4] (world to camera)
    and pair_infos ((i, j), overlap, ...). root: a folder with the index and the images (Undistorted_SfM/...), or a
    checkout of LoFTR with its data linked.
    """
    root, listing = Path(root), "megadepth_test_1500.txt"
    places = ("", "megadepth_test_1500_scene_info", "assets/megadepth_test_1500_scene_info", "index", "scene_info")
    try:
        index = folder_with(root, places, listing)
        scenes = [index / f"{words[0].removesuffix('.npz')}.npz" for _, words in lines_of(index / listing)]
    except FileNotFoundError:
        index = folder_with(root, places, "*.npz")
        scenes = sorted(index.glob("*.npz"))
    pairs, images = [], None
    for path in scenes:
        scene = read_arrays(existing(path.name, index, str(index / listing)))
        keys = ("image_paths", "intrinsics", "poses", "pair_infos")
        paths, K, poses, infos = (entries(scene, key, path) for key in keys)
        for row, (i, j, overlap) in enumerate(overlapping(infos, min(map(len, (paths, K, poses))), path)):
            if not overlap > 0:
                continue
            images = images or folder_with(root, ("", "data/megadepth/test", "images", ".."), str(paths[i]))
            image0, image1 = (existing(str(paths[k]), images, f"{path}: pair {row}") for k in (i, j))
            pairs.append(
                PosePair(
                    name=f"{path.stem} {Path(paths[i]).stem} {Path(paths[j]).stem}",
                    image0=image0,
                    image1=image1,
                    K0=camera_matrix(K[i], f"{path}: entry {i} of 'intrinsics'"),
                    K1=camera_matrix(K[j], f"{path}: entry {j} of 'intrinsics'"),
                    T_0to1=_pose_of(poses, j, path) @ np.linalg.inv(_pose_of(poses, i, path)),
                )
            )
    return nonempty(pairs, index)


def colmap_pairs(root: str | Path, min_overlap: float = 0.1) -> list[PosePair]:
    """The pairs of a COLMAP model without distortion whose images show enough of the same points.

    root, min_overlap: as of `scenes.colmap.ColmapScene`. Cameras are of the pixels as stored: EXIF rotations are not applied.
    """
    from ..data.matching.colmap import pairs_by_overlap, read_views

    root = Path(root)
    views = read_views(root)
    return [
        PosePair(
            name=f"{views[i].name} {views[j].name}",
            image0=root / "images" / views[i].name,
            image1=root / "images" / views[j].name,
            size0=views[i].size,
            size1=views[j].size,
            upright=False,
            K0=views[i].K,
            K1=views[j].K,
            T_0to1=views[j].pose @ np.linalg.inv(views[i].pose),
        )
        for i, j in pairs_by_overlap(views, min_overlap, 1.0, root)
    ]


def _pose_of(poses: Any, number: int, path: Path) -> np.ndarray:
    return pose_matrix(poses[number], f"{path}: entry {number} of 'poses'")
