"""Alternates batches of several kinds of training data, in given shares."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from ..errors import InputError, check_range
from .loading import StreamLoader


class MixedLoader:
    """Batches of several loaders, each the next one of a loader drawn by ``shares``; ``length`` of them an epoch.

    A loader that ends continues with its next epoch. The choice depends on the seed and the number of batches before, and checkpoints store the
    position of each loader, so that a resumed training continues with the next batch.
    """

    def __init__(self, loaders: list[StreamLoader], shares: list[float], length: int, seed: int) -> None:
        self.loaders, self.length, self.seed = loaders, length, seed
        self.shares = np.array(shares) / sum(shares)
        self._step = 0  # batches since the beginning of the training
        self._streams = [self._stream(loader) for loader in loaders]

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self.length - self._step % self.length):
            rng = np.random.default_rng([self.seed, self._step])
            which = rng.choice(len(self.loaders), p=self.shares)
            self._step += 1
            yield next(self._streams[which])

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step, "loaders": [loader.state_dict() for loader in self.loaders]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._step = state["step"]
        for loader, one in zip(self.loaders, state["loaders"], strict=True):
            loader.load_state_dict(one)

    @staticmethod
    def _stream(loader: StreamLoader) -> Iterator[Any]:
        while True:
            yield from loader
            loader.sampler.epoch += 1


class MixedData(LightningDataModule):
    """Several data modules for training, one of which provides each step; the first one provides validation.

    Args:
        parts: data modules whose batches say by ``supervision`` what is known of them, such as `HomographyData`, `MadeScenesData` and `ColmapData`.
        shares: how often each has its turn.
        length: batches per epoch and device.
        seed: of the draw; it is the same on all devices, so that each step is of one kind.
    """

    def __init__(
        self, parts: list[LightningDataModule], shares: list[float], length: int = 1000, seed: int = 0
    ) -> None:
        super().__init__()
        if not parts or len(shares) != len(parts) or not all(share > 0 for share in shares):
            raise InputError(f"shares are {shares} of {len(parts)} parts, expected a number above 0 for each part")
        check_range("length", length, 1)
        check_range("seed", seed, 0)
        self.parts, self.shares, self.length, self.seed = parts, shares, length, seed

    def train_dataloader(self) -> MixedLoader:
        """Batches of the parts, in random order."""
        loaders = [part.train_dataloader() for part in self.parts]
        return MixedLoader(loaders, self.shares, self.length, self.seed)

    def val_dataloader(self) -> DataLoader:
        """The validation data of the first part."""
        return self.parts[0].val_dataloader()

    test_dataloader = val_dataloader
