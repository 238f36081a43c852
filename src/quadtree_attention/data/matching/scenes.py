"""Scenes of ScanNet, MegaDepth or COLMAP for training and validation, sampled as LoFTR's published training does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule
from torch.utils.data import ConcatDataset, DataLoader, Dataset, DistributedSampler

from ...errors import InputError, check_range
from ..arrays import read_arrays
from ..lists import lines_in
from ..loading import StreamLoader, loader_options, processes
from .colmap import ColmapScene
from .layouts import MegaDepthScene, ScanNetScene


class SceneSampler(DistributedSampler):
    """So many pairs of each scene per epoch, with replacement, in random order; this device's scenes alone are in the dataset.

    Lightning leaves it alone, because it is a DistributedSampler. ``first``: how many of this epoch's pairs the next iteration leaves out. What is
    drawn depends on seed, epoch and device alone, so that a resumed training goes on with the next pair.
    """

    def __init__(self, dataset: ConcatDataset, per_scene: int, seed: int = 0) -> None:
        super().__init__(dataset, *processes(), shuffle=True, seed=seed)
        self.per_scene, self.first = per_scene, 0
        self.ends = dataset.cumulative_sizes
        self.num_samples = per_scene * len(dataset.datasets)

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        rng = np.random.default_rng([self.seed, self.epoch, self.rank])
        starts = [0, *self.ends]
        drawn = [rng.integers(begin, end, self.per_scene) for begin, end in zip(starts, self.ends, strict=False)]
        numbers = rng.permutation(np.concatenate(drawn)).tolist()
        first, self.first = self.first, 0
        return iter(numbers[first:])


def scenes_of_device(scenes: list[str], count: int, rank: int, seed: int) -> list[str]:
    """Scenes dealt out to ``count`` devices, as many to each: some twice where they do not divide."""
    rng = np.random.default_rng([seed, count])
    shuffled = rng.permutation(scenes).tolist()
    shuffled += rng.choice(scenes, -len(scenes) % count).tolist()
    return shuffled[rank::count]


class ScenesData(LightningDataModule):
    """Base class of the layouts; see `ScanNetData`, `MegaDepthData` and `ColmapData`."""

    def __init__(self, batch_size: int, per_scene: int, num_workers: int, seed: int) -> None:
        super().__init__()
        check_range("per_scene", per_scene, 1)
        check_range("seed", seed, 0)
        self.batch_size, self.per_scene, self.num_workers, self.seed = batch_size, per_scene, num_workers, seed

    def scenes(self, training: bool) -> list[str]:
        """Names of the scenes for training or validation."""
        raise TypeError(f"{type(self).__name__} defines no scenes()")

    def scene(self, name: str, training: bool) -> Dataset:
        """The pairs of one scene."""
        raise TypeError(f"{type(self).__name__} defines no scene()")

    def train_dataloader(self) -> DataLoader:
        """``per_scene`` pairs per epoch of each of this device's scenes."""
        names = scenes_of_device(self.scenes(True), *processes(), self.seed)
        dataset: ConcatDataset = ConcatDataset([self.scene(name, True) for name in names])
        sampler = SceneSampler(dataset, self.per_scene, self.seed)
        if len(sampler) < self.batch_size:
            raise InputError(
                f"an epoch has {len(sampler)} pairs, {self.per_scene} of each of {len(names)} scenes, fewer than a batch of "
                f"{self.batch_size}; raise per_scene, or lower batch_size"
            )
        options = loader_options(self.batch_size, self.num_workers)
        return StreamLoader(dataset, sampler=sampler, drop_last=True, **options)

    def val_dataloader(self) -> DataLoader:
        """All pairs of the scenes of validation, one at a time, in their order; over several devices they are dealt out."""
        dataset: ConcatDataset = ConcatDataset([self.scene(name, False) for name in self.scenes(False)])
        return DataLoader(dataset, **loader_options(1, self.num_workers))

    test_dataloader = val_dataloader


@dataclass(frozen=True, kw_only=True)
class Split:
    """Where the scenes of training, or of validation, are.

    root: folder of the images and depth maps. index: folder of an .npz for each scene. scenes: list of their names, one per line; by default all in
    ``index``. intrinsics: of ScanNet, the file of them. poses: of ScanNet, folder of the poses if it is another. min_overlap: pairs have more.
    """

    root: str
    index: str
    scenes: str | None = None
    intrinsics: str | None = None
    poses: str | None = None
    min_overlap: float = 0.0

    def names(self) -> list[str]:
        """Names of the scenes, without .npz."""
        if self.scenes is None:
            found = sorted(path.stem for path in Path(self.index).glob("*.npz"))
        else:
            found = [line.split()[0].removesuffix(".npz") for line in lines_in(Path(self.scenes)) if line.strip()]
        if not found:
            raise InputError(f"{self.scenes or self.index}: no scenes in it, expected one name per line, or .npz files")
        return found

    def file(self, name: str) -> Path:
        """The index of one scene."""
        return Path(self.index) / f"{name}.npz"


class ScanNetData(ScenesData):
    """ScanNet's scenes; see `ScanNetScene`.

    Args:
        train, val: where they are; published: pairs with an overlap above 0.4, and all pairs.
        size: (width, height) of the images.
        batch_size: pairs per device and step.
        per_scene: pairs of each scene per epoch, drawn with replacement; 200 as published.
        num_workers: worker processes that read pairs.
        seed: of the random choice.
    """

    def __init__(
        self,
        train: Split,
        val: Split,
        size: tuple[int, int] = (640, 480),
        batch_size: int = 1,
        per_scene: int = 200,
        num_workers: int = 4,
        seed: int = 66,
    ) -> None:
        super().__init__(batch_size, per_scene, num_workers, seed)
        for name, split in (("train", train), ("val", val)):
            if split.intrinsics is None:
                raise InputError(f"{name}.intrinsics is missing, expected the .npz with the scenes' intrinsics")
        self.train, self.val, self.size = train, val, size
        self._intrinsics: dict[str, Any] = {}  # file -> what is in it: all scenes of a split share one

    def scenes(self, training: bool) -> list[str]:
        """Names of the scenes for training or validation."""
        return (self.train if training else self.val).names()

    def scene(self, name: str, training: bool) -> Dataset:
        """The pairs of one scene."""
        split = self.train if training else self.val
        file = str(split.intrinsics)
        if file not in self._intrinsics:
            self._intrinsics[file] = read_arrays(file)
        intrinsics = self._intrinsics[file]
        return ScanNetScene(split.root, split.file(name), intrinsics, split.min_overlap, split.poses, self.size)


class MegaDepthData(ScenesData):
    """MegaDepth's scenes; see `MegaDepthScene`.

    Args:
        train, val: where they are; published: pairs with any overlap.
        longest, val_longest, multiple: of the images' sides, in training and in validation; images are padded to squares.
        batch_size: pairs per device and step.
        per_scene: pairs of each scene per epoch, drawn with replacement; 100 as published.
        num_workers: worker processes that read pairs.
        seed: of the random choice.
    """

    def __init__(
        self,
        train: Split,
        val: Split,
        longest: int = 832,
        val_longest: int = 832,
        multiple: int = 8,
        batch_size: int = 1,
        per_scene: int = 100,
        num_workers: int = 4,
        seed: int = 66,
    ) -> None:
        super().__init__(batch_size, per_scene, num_workers, seed)
        self.train, self.val, self.longest, self.val_longest, self.multiple = train, val, longest, val_longest, multiple

    def scenes(self, training: bool) -> list[str]:
        """Names of the scenes for training or validation."""
        return (self.train if training else self.val).names()

    def scene(self, name: str, training: bool) -> Dataset:
        """The pairs of one scene."""
        split = self.train if training else self.val
        longest = self.longest if training else self.val_longest
        return MegaDepthScene(split.root, split.file(name), split.min_overlap, longest, self.multiple)


class ColmapData(ScenesData):
    """COLMAP models, one a scene; see `ColmapScene`.

    Args:
        train, val: folders of models without distortion.
        min_overlap, max_overlap, longest, multiple, points: see `ColmapScene`; images are padded to squares.
        batch_size: pairs per device and step. Models with and without dense depth maps cannot share a batch.
        per_scene: pairs of each scene per epoch, drawn with replacement.
        num_workers: worker processes that read pairs.
        seed: of the random choice.
    """

    def __init__(
        self,
        train: list[str],
        val: list[str],
        min_overlap: float = 0.1,
        max_overlap: float = 0.9,
        longest: int = 640,
        multiple: int = 8,
        points: int = 1024,
        batch_size: int = 1,
        per_scene: int = 100,
        num_workers: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, per_scene, num_workers, seed)
        self.train, self.val = train, val
        self.options: dict[str, Any] = dict(
            min_overlap=min_overlap, max_overlap=max_overlap, longest=longest, multiple=multiple, points=points
        )

    def scenes(self, training: bool) -> list[str]:
        """Names of the scenes for training or validation."""
        return self.train if training else self.val

    def scene(self, name: str, training: bool) -> Dataset:
        """The pairs of one scene."""
        return ColmapScene(name, **self.options)
