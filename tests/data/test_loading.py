"""Datasets made by chance, and loaders that go on where they stood."""

import numpy as np
import pytest
import torch

from quadtree_attention.data.loading import Augmented, EpochSampler, SeededDataset, StreamSampler, seeded, stream_loader


class Numbers(SeededDataset):
    def __init__(self, length=10):
        super().__init__(length, 0)

    def sample(self, index):
        return index


def test_made_samples():
    assert list(Numbers()) == list(range(10))
    assert Numbers()[12] == 12, "numbers beyond the length are those of later epochs"
    with pytest.raises(IndexError, match="index is -1, expected 0 or more"):
        Numbers()[-1]
    with pytest.raises(ValueError, match="length is 0, expected at least 1"):
        Numbers(0)
    with pytest.raises(TypeError, match="SeededDataset defines no sample"):
        SeededDataset(1, 0)[0]


def test_a_stream_needs_a_batch():
    with pytest.raises(ValueError, match="length is 10, expected at least one batch of 11"):
        stream_loader(Numbers(), 11, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_goes_on_where_it_stood(workers):
    loader = stream_loader(Numbers(), 2, workers)
    batches = []
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        batches.append([batch.tolist() for batch in loader])
    assert [index for epoch in batches for batch in epoch for index in batch] == list(range(30))
    loader.sampler.set_epoch(1)
    iterator = iter(loader)
    for _ in range(3):
        next(iterator)
    again = stream_loader(Numbers(), 2, workers)
    again.load_state_dict(loader.state_dict())
    assert [batch.tolist() for batch in again] == batches[1][3:]
    assert again.state_dict() == {"epoch": 1, "batches": 5}
    again = stream_loader(Numbers(), 2, 0)
    again.load_state_dict({"epoch": 1, "batches": 5})  # at the end of an epoch: the next one follows
    assert [batch.tolist() for batch in again] == batches[2]


def test_devices_share_the_stream():
    dataset = Numbers()
    numbers = []
    for rank in range(3):
        sampler = StreamSampler(dataset)
        sampler.num_replicas, sampler.rank, sampler.num_samples = 3, rank, 3
        sampler.set_epoch(2)
        numbers.append(list(sampler))
    assert numbers == [[18, 21, 24], [19, 22, 25], [20, 23, 26]]


def test_a_sampler_deals_out_and_goes_on():
    dataset = Augmented(range(10), 0)
    whole = list(EpochSampler(dataset))
    assert sorted(index for _, index in whole) == list(range(10))
    parts = []
    for rank in (0, 1):
        sampler = EpochSampler(dataset)
        sampler.num_replicas, sampler.rank, sampler.num_samples = 2, rank, 5
        parts.append(list(sampler))
    assert [pair for both in zip(*parts, strict=True) for pair in both] == whole
    sampler = EpochSampler(dataset)
    sampler.first = 4
    assert list(sampler) == whole[4:]
    assert list(sampler) == whole
    repeated = list(EpochSampler(dataset, repeats=3))
    assert len(repeated) == 10
    assert [index for _, index in repeated[:3]] == [repeated[0][1]] * 3
    assert len({number for number, _ in repeated[:3]}) == 3  # three augmentations


def test_seeded_leaves_the_generators_as_they_were():
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    want = np.random.rand(), torch.rand(1)  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    with seeded(3, 4):
        inside = np.random.rand(), torch.rand(1)  # noqa: NPY002
    assert (np.random.rand(), torch.rand(1)) == want  # noqa: NPY002
    with seeded(3, 4):
        assert (np.random.rand(), torch.rand(1)) == inside  # noqa: NPY002
