"""An endless stream of generated samples for training: each made once, dealt out to the devices, gone on with after a break."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler


class StreamSampler(DistributedSampler):
    """Numbers of an endless stream of samples, ``len(dataset)`` an epoch, dealt out to the devices.

    Being a DistributedSampler it is left as it is by Lightning. ``first``: how many of this epoch's numbers the next
    iteration leaves out.
    """

    def __init__(self, dataset: Dataset) -> None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        devices, device = (torch.distributed.get_world_size(), torch.distributed.get_rank()) if distributed else (1, 0)
        super().__init__(dataset, devices, device, shuffle=False, drop_last=True)
        self.first = 0

    def __iter__(self) -> Iterator[int]:
        begin = self.epoch * self.num_samples * self.num_replicas
        numbers = range(begin + self.rank, begin + self.num_samples * self.num_replicas, self.num_replicas)
        first, self.first = self.first, 0
        return iter(numbers[first:])


class StreamLoader(DataLoader):
    """A DataLoader over a `StreamSampler` that knows how far it has come; Lightning stores that in its checkpoints."""

    sampler: StreamSampler
    _done = 0  # batches of this epoch that were handed out

    def __iter__(self) -> Iterator[Any]:
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


def one_thread(worker: int) -> None:
    """Of a DataLoader's worker: OpenCV shall not start threads of its own."""
    cv2.setNumThreads(0)
