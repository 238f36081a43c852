"""Datasets and loaders whose order a resumed training continues exactly."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ..errors import InputError, check_range


class SeededDataset(Dataset):
    """Samples made by chance, ``length`` an epoch: sample n depends on ``seed`` and n alone, and numbers beyond ``length`` are those of later epochs.

    A subclass makes them in `sample`.
    """

    def __init__(self, length: int, seed: int) -> None:
        check_range("length", length, 1)
        check_range("seed", seed, 0)
        self.length, self.seed = length, seed

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(self.length))

    def __getitem__(self, index: int) -> Any:
        if index < 0:
            raise IndexError(f"index is {index}, expected 0 or more")
        return self.sample(index)

    def sample(self, index: int) -> Any:
        """Sample ``index``, 0 or more."""
        raise TypeError(f"{type(self).__name__} defines no sample()")


class StreamSampler(DistributedSampler):
    """Numbers of an endless stream of samples, ``len(dataset)`` an epoch, dealt out to the devices.

    Lightning leaves it alone, because it is a DistributedSampler. ``first``: how many of this epoch's numbers the next
    iteration leaves out.
    """

    def __init__(self, dataset: Dataset) -> None:
        super().__init__(dataset, *processes(), shuffle=False, drop_last=True)
        self.first = 0

    def __iter__(self) -> Iterator[int]:
        begin = self.epoch * self.num_samples * self.num_replicas
        numbers = range(begin + self.rank, begin + self.num_samples * self.num_replicas, self.num_replicas)
        first, self.first = self.first, 0
        return iter(numbers[first:])


class EpochSampler(DistributedSampler):
    """Pairs (epoch, index), shuffled anew in each epoch and dealt out to the devices; ``repeats`` of each image follow one another.

    Lightning leaves it alone, because it is a DistributedSampler. ``first``: how many samples the next iteration leaves out.
    """

    dataset: Augmented

    def __init__(self, dataset: Augmented, seed: int = 0, repeats: int = 1) -> None:
        super().__init__(dataset, *processes(), shuffle=True, seed=seed, drop_last=True)
        self.first, self.repeats = 0, repeats

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = torch.randperm(len(self.dataset), generator=torch.Generator().manual_seed(self.seed + self.epoch))
        order = order.repeat_interleave(self.repeats)[self.rank :: self.num_replicas][: self.num_samples]
        first, self.first = self.first, 0
        return iter([(self.epoch * self.repeats + k % self.repeats, int(i)) for k, i in enumerate(order)][first:])


class Augmented(Dataset):
    """A dataset whose random transforms depend on seed, epoch and index alone, whichever process runs them."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        check_range("seed", seed, 0)
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # torch's Dataset declares no length

    def __getitem__(self, place: tuple[int, int]) -> Any:
        with seeded(self.seed, *place):
            return self.dataset[place[1]]


class ResumableSampler(Protocol):
    """What `StreamLoader` needs to know of its sampler: the epoch, and how many samples the next iteration leaves out."""

    epoch: int
    first: int

    def __iter__(self) -> Iterator[Any]: ...


class StreamLoader(DataLoader):
    """A DataLoader that records its position; Lightning stores it in checkpoints.

    Its sampler has an ``epoch``, and skips the ``first`` samples of the next iteration. torchdata's StatefulDataLoader resumes too, but only
    with the number of workers that it stopped with.
    """

    sampler: ResumableSampler
    batch_size: int
    _done = 0  # batches of this epoch that were handed out
    _restored: int | None = None  # epoch that the sampler's ``first`` is of

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch names a class of its own
        if self._restored is not None and self.sampler.epoch != self._restored:
            self.sampler.first = (
                0  # the training stopped at the end of an epoch, which may come before that of the samples
            )
        self._restored = None
        self._done = self.sampler.first // self.batch_size
        for batch in super().__iter__():
            self._done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.sampler.epoch, "batches": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        at_end = state["batches"] >= len(self)
        self.sampler.epoch = state["epoch"] + at_end
        self.sampler.first = 0 if at_end else state["batches"] * self.batch_size
        self._restored = self.sampler.epoch


def stream_loader(dataset: Dataset, batch_size: int, num_workers: int) -> StreamLoader:
    """Batches from an endless stream of samples, ``len(dataset)`` samples per epoch; an incomplete last batch is dropped."""
    length = len(dataset)  # type: ignore[arg-type]  # torch's Dataset declares no length
    if length < batch_size:
        raise InputError(f"length is {length}, expected at least one batch of {batch_size}")
    options = loader_options(batch_size, num_workers)
    return StreamLoader(dataset, sampler=StreamSampler(dataset), drop_last=True, **options)


class SeededData(LightningDataModule):
    """Samples made by chance for training and validation; a subclass makes both datasets in `dataset`.

    Args:
        batch_size: samples per device and step.
        num_workers: worker processes that make samples; the samples do not depend on their number.
    """

    def __init__(self, batch_size: int, num_workers: int) -> None:
        super().__init__()
        self.batch_size, self.num_workers = batch_size, num_workers

    def dataset(self, training: bool) -> SeededDataset:
        """The samples for training or validation."""
        raise TypeError(f"{type(self).__name__} defines no dataset()")

    def train_dataloader(self) -> StreamLoader:
        """Samples of an endless stream, the next ``length`` in each epoch."""
        return stream_loader(self.dataset(True), self.batch_size, self.num_workers)

    def val_dataloader(self) -> DataLoader:
        """The same samples each time, of other photographs and another seed than those of training."""
        return DataLoader(self.dataset(False), **loader_options(self.batch_size, self.num_workers))

    test_dataloader = val_dataloader


def processes() -> tuple[int, int]:
    """The number of training processes, and the index of this one."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return (torch.distributed.get_world_size(), torch.distributed.get_rank()) if distributed else (1, 0)


def check_size(size: tuple[int, int], least: int = 32) -> None:
    """Make sure that training images of ``size`` (height, width) can be made: ``least`` to 4096 pixels on each side.

    Raises:
        InputError: they cannot.
    """
    if len(size) != 2 or min(size) < least or max(size) > 4096:
        raise InputError(f"size is {'x'.join(map(str, size))}, expected {least} to 4096 pixels on each side")


def loader_options(batch_size: int, num_workers: int) -> dict[str, Any]:
    """Options of all loaders.

    Raises:
        ValueError: a batch size below 1, or a negative number of workers.
    """
    check_range("batch_size", batch_size, 1)
    check_range("num_workers", num_workers, 0)
    return {
        "batch_size": batch_size,
        "num_workers": num_workers,
        "persistent_workers": num_workers > 0,
        "worker_init_fn": one_thread,
        "pin_memory": torch.cuda.is_available(),
    }


def one_thread(worker: int) -> None:
    """Set up a DataLoader worker: OpenCV starts no threads, and Ctrl-C, which goes to all processes, is left to the training process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    try:
        import cv2
    except ImportError:
        return
    cv2.setNumThreads(0)


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Context in which the random generators of Python, numpy and torch (CPU) are seeded from ``numbers``; it restores them at the end."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 (timm draws from it)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
