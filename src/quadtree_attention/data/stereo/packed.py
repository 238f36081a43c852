"""Stereo pairs packed in files, so that a training reads crops of them at no cost.

A pack is a .npy file, uint8 ``[N, H, W, 11]``: left and right colours, disparity of the left and of the right view (16 bits each, 256 times the
pixels, high byte first, 0 where it is unknown), and flags: 1 for what the right view does not show of the left, 2 the other way round.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...errors import InputError, check_range
from ...files import atomic_write
from ..loading import SeededDataset, check_size, loader_options, stream_loader
from .synthetic import Views, change_light

CHANNELS = 11
_SCALE = 256


def pack_sample(sample: dict[str, Tensor]) -> np.ndarray:
    """A sample of `StereoDataset` as uint8 ``[H, W, 11]``; disparities above 255 pixels become unknown."""
    height, width = sample["disparity"].shape
    packed = np.zeros((height, width, CHANNELS), np.uint8)
    for first, name in ((0, "left"), (3, "right")):
        packed[..., first : first + 3] = (sample[name] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    for first, name in ((6, "disparity"), (8, "disparity_right")):
        if name in sample:
            values = np.rint(sample[name].numpy() * _SCALE)
            values[~((values > 0) & (values < 65536))] = 0
            packed[..., first : first + 2] = values.astype(">u2")[..., None].view(np.uint8)
    for bit, name in ((1, "occluded"), (2, "occluded_right")):
        if name in sample:
            packed[..., 10] |= np.where(sample[name].numpy(), np.uint8(bit), np.uint8(0))
    return packed


def write_pack(path: str | Path, samples: Iterable[dict[str, Tensor]], count: int) -> None:
    """Write the first ``count`` of samples of one size, whole or not at all."""
    with atomic_write(path) as temporary:
        out: np.memmap | None = None
        for number, sample in zip(range(count), samples, strict=False):
            packed = pack_sample(sample)
            if out is None:
                out = np.lib.format.open_memmap(temporary, "w+", np.uint8, (count, *packed.shape))
            out[number] = packed
        if out is not None:
            out.flush()


class Packs:
    """Pairs of one or more packs, numbered on.

    Raises:
        ValueError: a file that is no pack.
        FileNotFoundError: a file that is missing.
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        self.packs = []
        for path in paths:
            try:
                pack = np.load(path, mmap_mode="r", allow_pickle=False)
            except ValueError as error:
                raise InputError(f"{path} is no pack of stereo pairs: {error}") from None
            if pack.dtype != np.uint8 or pack.ndim != 4 or pack.shape[-1] != CHANNELS:
                raise InputError(
                    f"{path} holds {pack.dtype} {pack.shape}, expected uint8 [N, H, W, {CHANNELS}]: a pack of stereo pairs"
                )
            self.packs.append(pack)
        self.ends = np.cumsum([len(pack) for pack in self.packs])

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, index: int) -> np.ndarray:
        """uint8 ``[H, W, 11]``, still on disk."""
        number = int(np.searchsorted(self.ends, index, "right"))
        return self.packs[number][index - int(self.ends[number])]


def unpack(packed: np.ndarray) -> dict[str, np.ndarray]:
    """Maps ``[H, W]`` of a packed pair, and its views uint8 ``[H, W, 3]``, as `StereoDataset` names them."""
    flags = packed[..., 10]
    sample = {
        "left": packed[..., :3],
        "right": packed[..., 3:6],
        "occluded": flags & 1 > 0,
        "occluded_right": flags & 2 > 0,
    }
    for first, name in ((6, "disparity"), (8, "disparity_right")):
        values = np.ascontiguousarray(packed[..., first : first + 2]).view(">u2")[..., 0]
        sample[name] = values.astype(np.float32) / _SCALE
    return sample


class PackedCrops(SeededDataset):
    """Random crops of packed pairs, upside down or in a mirror by chance, under changed light.

    Sample n depends on the seed, n and the packs alone.

    Args:
        packs: synthetic pairs.
        size: (height, width) of the crops, at most those of any pair.
        real, real_share: packs of other pairs, and how much of the samples is of them; packs as in `Packs`.
        length, seed: see `SeededDataset`.
        views: how light and noise of the views are made to differ; rows and tilt are as packed.

    A sample is a dict of ``left``, ``right`` float32 ``[3, H, W]`` in 0..1, ``disparity`` float32 ``[H, W]``, 0 where it is unknown, and
    bool ``occluded``, ``occluded_right``: also what the other view shows outside of the crop.
    """

    def __init__(
        self,
        packs: Sequence[str | Path],
        size: tuple[int, int],
        real: Sequence[str | Path] = (),
        real_share: float = 0.0,
        length: int = 1000,
        seed: int = 0,
        views: Views | None = None,
    ) -> None:
        super().__init__(length, seed)
        check_size(size, least=8)
        check_range("real_share", real_share, 0, 1)
        self.packs, self.real, self.real_share = Packs(packs), Packs(real), real_share if real else 0.0
        self.size, self.views = (int(size[0]), int(size[1])), views or Views()
        for pack in self.packs.packs + self.real.packs:
            if pack.shape[1] < self.size[0] or pack.shape[2] < self.size[1]:
                raise InputError(
                    f"size is {size[0]}x{size[1]}, expected at most the {pack.shape[1]}x{pack.shape[2]} of the packed pairs"
                )

    def sample(self, index: int) -> dict[str, Tensor]:
        """Crop ``index``."""
        rng = np.random.default_rng([self.seed, index])
        packs = self.real if rng.random() < self.real_share else self.packs
        pair = packs[int(rng.integers(len(packs)))]
        top, left = (int(rng.integers(have - want + 1)) for have, want in zip(pair.shape, self.size, strict=False))
        found = unpack(pair[top : top + self.size[0], left : left + self.size[1]])
        if rng.random() < 0.5:
            found = {name: x[::-1] for name, x in found.items()}
        if rng.random() < 0.5 and found["disparity_right"].any():
            names = {"left": "right", "disparity": "disparity_right", "occluded": "occluded_right"}
            names |= {there: here for here, there in names.items()}
            found = {names[name]: x[:, ::-1] for name, x in found.items()}
        columns = np.arange(self.size[1])
        found["occluded"] = found["occluded"] | (found["disparity"] > columns)
        found["occluded_right"] = found["occluded_right"] | (found["disparity_right"] > columns[::-1])
        images = change_light(rng, found["left"].astype(np.float32), found["right"].astype(np.float32), self.views)
        sample = {name: image.transpose(2, 0, 1) for name, image in zip(("left", "right"), images, strict=True)}
        sample |= {name: found[name] for name in ("disparity", "occluded", "occluded_right")}
        return {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in sample.items()}


class PackedPairs(Dataset):
    """Whole packed pairs as they are, one after the other."""

    def __init__(self, paths: Sequence[str | Path]) -> None:
        self.packs = Packs(paths)

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        found = unpack(self.packs[index])
        del found["disparity_right"]
        sample = {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in found.items()}
        return sample | {name: sample[name].permute(2, 0, 1) / 255 for name in ("left", "right")}


class PackedStereoData(LightningDataModule):
    """Crops of packed pairs for training, whole ones for validation.

    Args:
        folder: holds train*.npy, real*.npy (or none) and val*.npy, as recipes/pack_stereo.py writes them.
        size, real_share, seed, views: see `PackedCrops`.
        batch_size: crops a device and step; validation takes one pair at a time.
        length: crops an epoch, over all devices.
        num_workers: processes that read them; the crops do not depend on it.
    """

    def __init__(
        self,
        folder: str,
        size: tuple[int, int] = (96, 320),
        batch_size: int = 2,
        length: int = 4000,
        real_share: float = 0.05,
        num_workers: int = 0,
        seed: int = 0,
        views: Views | None = None,
    ) -> None:
        super().__init__()
        self.folder, self.size, self.batch_size, self.length = folder, size, batch_size, length
        self.real_share, self.num_workers, self.seed, self.views = real_share, num_workers, seed, views

    def _packs(self, name: str) -> list[Path]:
        return sorted(Path(self.folder).glob(f"{name}*.npy"))

    def _needed(self, name: str) -> list[Path]:
        if not (found := self._packs(name)):
            raise InputError(
                f"{self.folder} holds no {name}*.npy, expected packs of stereo pairs; recipes/pack_stereo.py writes them"
            )
        return found

    def train_dataloader(self) -> DataLoader:
        """An endless stream of crops."""
        real = self._packs("real")
        crops = PackedCrops(self._needed("train"), self.size, real, self.real_share, self.length, self.seed, self.views)
        return stream_loader(crops, self.batch_size, self.num_workers)

    def val_dataloader(self) -> DataLoader:
        """Whole pairs, in order."""
        return DataLoader(PackedPairs(self._needed("val")), **loader_options(1, 0))

    test_dataloader = val_dataloader
