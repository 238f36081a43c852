"""Stereo datasets in the folder layouts of torchvision.datasets: Scene Flow, KITTI 2012 and 2015, Middlebury 2014, ETH3D.

Which crop of which pair sample n is depends on the seed and n alone, as with generated pairs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...compat import stereo_files
from ...errors import InputError
from ...extras import require
from ..images import read_image
from ..loading import StreamLoader, StreamSampler, loader_options
from ..maps import read_map
from .synthetic import Views, change_light

STEREO_SETS = ("sceneflow", "monkaa", "driving", "kitti2012", "kitti2015", "middlebury", "eth3d")
EVERY = 10  # of sets without a published split every so many-th pair is kept for validation


class StereoSet(Dataset):
    """Pairs of a dataset, or crops of them; samples as in `StereoDataset`, without ``disparity_right``, as it is not always known.

    ``disparity`` is 0 where it is unknown. ``occluded`` comes from what each set has: both views' disparities (Scene Flow,
    Middlebury), or maps with and without hidden pixels (KITTI 2015, ETH3D); KITTI 2012's maps leave hidden pixels out. ``occluded_right`` is there
    where both views' disparities are.

    Args:
        name: one of `STEREO_SETS`; sceneflow is its FlyingThings3D, clean pass.
        root: the folder that holds SceneFlow, Kitti2012, Kitti2015, Middlebury2014 or ETH3D, see torchvision.datasets.
        split: "train" or "validation": Scene Flow's TRAIN and TEST; of the others every tenth pair is for validation.
        size: (height, width) of random crops; smaller images are padded. None: whole images.
        seed: of the crops and their order.
        views: change light and noise of each view, with strengths as in `Views`; None: leave them.
    """

    def __init__(
        self,
        name: str,
        root: str | Path,
        split: str = "train",
        size: tuple[int, int] | None = None,
        seed: int = 0,
        views: Views | None = None,
    ) -> None:
        if name not in STEREO_SETS:
            raise InputError(f"name is {name!r}, expected one of {', '.join(STEREO_SETS)}")
        if split not in ("train", "validation"):
            raise InputError(f"split is {split!r}, expected train or validation")
        self.name, self.size, self.seed, self.views = name, size, seed, views
        self.pairs = _open(name, Path(root))
        places = range(len(self.pairs))
        if name == "sceneflow":
            want = "TRAIN" if split == "train" else "TEST"
            self.indices = [n for n in places if want in Path(stereo_files(self.pairs)[0][n][0]).parts]
        else:
            self.indices = [n for n in places if (n % EVERY == EVERY - 1) == (split == "validation")]
        if not self.indices:
            raise InputError(f"{root}: no pairs of {name} for {split}, found {len(self.pairs)} in all")

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if index < 0:
            raise IndexError(f"index is {index}, expected 0 or more")
        rng = np.random.default_rng([self.seed, index])
        epoch, place = divmod(index, len(self))
        if self.size is not None:
            place = np.random.default_rng([self.seed, epoch, 1]).permutation(len(self))[place]
        sample = self._whole(self.indices[place])
        if self.size is not None:
            sample = _crop(rng, sample, self.size)
        if self.views is not None:
            left, right = (255 * sample[name].permute(1, 2, 0).numpy() for name in ("left", "right"))
            for name, image in zip(("left", "right"), change_light(rng, left, right, self.views), strict=True):
                sample[name] = torch.from_numpy(image.transpose(2, 0, 1).copy())
        return sample

    def _whole(self, place: int) -> dict[str, Tensor]:
        """Pair number ``place`` of the files."""
        images = [read_image(path, upright=False) for path in stereo_files(self.pairs)[0][place]]
        sample: dict[str, Tensor] = {
            name: torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32) / 255)
            for name, image in zip(("left", "right"), images, strict=True)
        }
        files = [Path(path) for path in stereo_files(self.pairs)[1][place] if path is not None]
        maps = [_disparity(path, image.shape[:2], self.name) for path, image in zip(files, images, strict=False)]
        disparity = sample["disparity"] = maps[0]
        sample["occluded"] = torch.zeros_like(disparity, dtype=torch.bool)
        if self.name in ("sceneflow", "monkaa", "driving", "middlebury"):
            other = maps[1]
            sample["occluded"] = hidden_pixels(disparity, other)
            sample["occluded_right"] = hidden_pixels(other.flip(-1), disparity.flip(-1)).flip(-1)
        elif self.name == "eth3d":
            seen = _sized(files[0].parent / "mask0nocc.png", images[0].shape[:2])
            sample["occluded"] = (disparity > 0) & torch.from_numpy(seen == 0)
        elif self.name == "kitti2015":
            path = files[0].parent.parent / "disp_noc_0" / files[0].name
            if path.is_file():
                sample["occluded"] = (disparity > 0) & torch.from_numpy(_sized(path, images[0].shape[:2]) == 0)
        return sample


def hidden_pixels(left: Tensor, right: Tensor, tolerance: float = 1.0) -> Tensor:
    """bool ``[..., H, W]``: pixels of the left view whose match is outside of the right one, or behind something there.

    left, right: disparities ``[..., H, W]``; pixels without one (0 or not finite) are not taken for hidden, nor do they hide any.
    tolerance: pixels of disparity by which what hides is nearer.
    """
    known = left.isfinite() & (left > 0)
    place = torch.arange(left.shape[-1], device=left.device) - torch.where(known, left, 0)
    there = right.gather(-1, place.round().long().clamp(0, left.shape[-1] - 1))
    return known & ((place < 0) | (there.isfinite() & (there - left > tolerance)))


def hidden_by_disparity(disparity: np.ndarray) -> np.ndarray:
    """bool ``[H, W]``: pixels that a disparity of the left view (0 is unknown) puts behind something or out of the right view."""
    height, width = disparity.shape
    place = np.rint(np.arange(width) - disparity).astype(int)
    inside = (disparity > 0) & (place >= 0)
    nearest = np.zeros_like(disparity)
    rows = np.broadcast_to(np.arange(height)[:, None], disparity.shape)
    np.maximum.at(nearest, (rows[inside], place[inside]), disparity[inside])
    return (disparity > 0) & ((place < 0) | (nearest[rows, place.clip(0)] - disparity > 1))


def _open(name: str, root: Path) -> Any:
    datasets = require("torchvision.datasets", "data")

    try:
        if name == "kitti2012":
            return datasets.Kitti2012Stereo(root)
        if name == "kitti2015":
            return datasets.Kitti2015Stereo(root)
        if name == "middlebury":
            return datasets.Middlebury2014Stereo(root)
        if name == "eth3d":
            return datasets.ETH3DStereo(root)
        variant = {"sceneflow": "FlyingThings3D", "monkaa": "Monkaa", "driving": "Driving"}[name]
        return datasets.SceneFlowStereo(root, variant=variant)
    except FileNotFoundError as error:
        reason = " ".join(str(error).split())
        raise FileNotFoundError(
            f"{name} is not below {root}: {reason}; see torchvision.datasets for its layout"
        ) from None


def _sized(path: Path, size: tuple[int, ...]) -> np.ndarray:
    """A map of numbers ``[H, W]``; ValueError unless it has the ``size`` of its image."""
    values = read_map(path)
    if values.shape != size:
        raise InputError(f"{path} has shape {values.shape}, expected {size}, that of its image")
    return values


def _disparity(path: Path, size: tuple[int, ...], name: str) -> Tensor:
    """A file of a set to ``[H, W]`` float32 in pixels, 0 where it is unknown."""
    scale = 256 if name.startswith("kitti") else 1
    values = torch.from_numpy(np.abs(_sized(path, size).astype(np.float32) / scale))
    return torch.where(values.isfinite(), values, 0)


def _crop(rng: np.random.Generator, sample: dict[str, Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
    height, width = sample["disparity"].shape
    missing = max(size[0] - height, 0), max(size[1] - width, 0)
    top, left = (int(rng.integers(max(have - want, 0) + 1)) for have, want in zip((height, width), size, strict=True))
    cropped = {}
    for name, x in sample.items():
        x = x[..., top : top + size[0], left : left + size[1]]
        cropped[name] = F.pad(x, (0, missing[1], 0, missing[0])) if any(missing) else x.contiguous()
    columns = torch.arange(size[1])
    beyond = (cropped["disparity"] > columns) & (cropped["disparity"] > 0)  # its match is left of the crop
    cropped["occluded"] = cropped["occluded"] | beyond
    return cropped


class StereoSetData(LightningDataModule):
    """Crops of a dataset for training, and whole pairs for validation.

    Args:
        name, root: see `StereoSet`.
        size: (height, width) of the crops.
        batch_size: pairs per device and step; validation takes one at a time, whose size may be its own.
        num_workers: processes that read pairs; the crops do not depend on it.
        seed, views: see `StereoSet`; of training.
    """

    name: str  # Lightning's may be None

    def __init__(
        self,
        name: str,
        root: str,
        size: tuple[int, int] = (360, 720),
        batch_size: int = 1,
        num_workers: int = 2,
        seed: int = 0,
        views: Views | None = None,
    ) -> None:
        super().__init__()
        self.name, self.root, self.size, self.batch_size = name, root, size, batch_size
        self.num_workers, self.seed, self.views = num_workers, seed, views

    def train_dataloader(self) -> DataLoader:
        """An endless stream: all pairs, shuffled anew each epoch, and a random crop of each."""
        dataset = StereoSet(self.name, self.root, "train", self.size, self.seed, self.views)
        if len(dataset) < self.batch_size:
            raise InputError(f"{self.name} has {len(dataset)} pairs to train on, expected a batch of {self.batch_size}")
        options = loader_options(self.batch_size, self.num_workers)
        return StreamLoader(dataset, sampler=StreamSampler(dataset), drop_last=True, **options)

    def val_dataloader(self) -> DataLoader:
        """Whole pairs, in order."""
        return DataLoader(StereoSet(self.name, self.root, "validation"), **loader_options(1, self.num_workers))

    test_dataloader = val_dataloader
