"""Pack pairs for the training of the stereo network, once.

    python recipes/pack_stereo.py OUT --photos FOLDER [FOLDER...] --packs 6 --pairs 500       OUT/train00.npy ... train05.npy
    python recipes/pack_stereo.py OUT --photos FOLDER --name val --pairs 12 --seed 1           OUT/val00.npy
    python recipes/pack_stereo.py OUT --middlebury FOLDER --leave-out Art Bowling2 Dolls        OUT/real_NAME.npy, OUT/val_NAME.npy of those left out

--photos      searched for photographs, folders below them too; each folder is drawn from with the same share.
--middlebury  holds NAME/left.png, right.png and disp.png (16 bits, 256 times the pixels, 0 unknown).
Packs that are there are left as they are: a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from quadtree_attention.data.images import read_image
from quadtree_attention.data.maps import read_map
from quadtree_attention.data.stereo.datasets import hidden_by_disparity
from quadtree_attention.data.stereo.packed import write_pack
from quadtree_attention.data.stereo.synthetic import StereoDataset
from quadtree_attention.files import list_photographs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--photos", nargs="+", type=Path)
    parser.add_argument("--name", default="train")
    parser.add_argument("--packs", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--size", nargs=2, type=int, default=(256, 512))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--middlebury", type=Path)
    parser.add_argument("--leave-out", nargs="*", default=[])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if options.photos:
        made_up(options)
    if options.middlebury:
        real(options)


def made_up(options: argparse.Namespace) -> None:
    """Packs of synthetic pairs, without changes of light: training makes those anew each time."""
    folders = [list_photographs(folder) for folder in options.photos]
    most = max(map(len, folders))
    photos = [path for folder in folders for path in folder * max(1, round(most / len(folder)))]
    data = StereoDataset(photos, tuple(options.size), options.packs * options.pairs, options.seed, relight=False)
    for number in range(options.packs):
        path = options.out / f"{options.name}{number:02}.npy"
        if path.exists():
            continue
        start, first = time.perf_counter(), number * options.pairs
        write_pack(path, (data[first + k] for k in range(options.pairs)), options.pairs)
        print(f"{path.name}: {options.pairs} pairs, {time.perf_counter() - start:.0f} s", flush=True)


def real(options: argparse.Namespace) -> None:
    """A pack of each pair of a folder."""
    for folder in sorted(path.parent for path in options.middlebury.glob("*/disp.png")):
        left, right = (read_image(folder / f"{name}.png") for name in ("left", "right"))
        disparity = read_map(folder / "disp.png").astype(np.float32) / 256
        sample = {
            "left": torch.from_numpy(left.transpose(2, 0, 1) / np.float32(255)),
            "right": torch.from_numpy(right.transpose(2, 0, 1) / np.float32(255)),
            "disparity": torch.from_numpy(disparity),
            "occluded": torch.from_numpy(hidden_by_disparity(disparity)),
        }
        kind = "val" if folder.name in options.leave_out else "real"
        write_pack(options.out / f"{kind}_{folder.name}.npy", [sample], 1)


if __name__ == "__main__":
    main()
