from collections import Counter

import pytest
import torch
from lightning.pytorch import LightningDataModule

from quadtree_attention.data.loading import SeededDataset, stream_loader
from quadtree_attention.data.mixed import MixedData


class Numbers(SeededDataset):
    def __init__(self, first: int, length: int) -> None:
        super().__init__(length, 0)
        self.first = first

    def sample(self, index: int) -> torch.Tensor:
        return torch.tensor(self.first + index)


class Part(LightningDataModule):
    def __init__(self, first: int, length: int, batch: int) -> None:
        super().__init__()
        self.options = first, length, batch

    def train_dataloader(self):
        first, length, batch = self.options
        return stream_loader(Numbers(first, length), batch, 0)

    def val_dataloader(self):
        return [self.options]


def parts() -> list[LightningDataModule]:
    return [Part(0, 6, 2), Part(1000, 8, 4)]


def batches(loader, epochs: int) -> list[list[int]]:
    return [batch.tolist() for _ in range(epochs) for batch in loader]


def test_each_step_is_of_one_part_by_shares_and_every_stream_goes_on():
    loader = MixedData(parts(), [0.75, 0.25], length=40).train_dataloader()
    assert len(loader) == 40
    seen = batches(loader, 2)
    assert len(seen) == 80
    kinds = Counter(len(batch) for batch in seen)
    assert 45 <= kinds[2] <= 75
    small = [number for batch in seen if len(batch) == 2 for number in batch]
    large = [number for batch in seen if len(batch) == 4 for number in batch]
    assert small == list(range(2 * kinds[2]))  # an endless stream, over the ends of its epochs of 6
    assert large == list(range(1000, 1000 + 4 * kinds[4]))


def test_a_resumed_training_goes_on_with_the_next_batch():
    whole = batches(MixedData(parts(), [1, 1], length=9).train_dataloader(), 3)
    for stop in (0, 4, 9, 13, 18):
        first = MixedData(parts(), [1, 1], length=9).train_dataloader()
        seen = []
        while len(seen) < stop:
            for batch in first:
                seen.append(batch.tolist())
                if len(seen) == stop:
                    break
        again = MixedData(parts(), [1, 1], length=9).train_dataloader()
        again.load_state_dict(first.state_dict())
        while len(seen) < len(whole):
            seen += batches(again, 1)
        assert seen == whole, stop


def test_validation_is_the_first_parts():
    assert MixedData(parts(), [1, 1]).val_dataloader() == [(0, 6, 2)]


@pytest.mark.parametrize("shares", [[1.0], [1.0, 0.0], [1.0, -1.0]])
def test_shares_must_fit(shares):
    with pytest.raises(ValueError, match="expected a number above 0 for each part"):
        MixedData(parts(), shares)
    with pytest.raises(ValueError, match=r"^length is 0, expected at least 1$"):
        MixedData(parts(), [1, 1], length=0)
