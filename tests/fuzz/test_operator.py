"""A seeded slice of the operator's fuzz, and the fuzz itself."""

import pytest
import torch

from quadtree_attention.ops import cpu

from . import operator
from .operator import check


@pytest.mark.parametrize("first", range(0, 100, 25))
def test_random_calls_equal_the_reference(first):
    for seed in range(first, first + 25):
        check(seed)


# Calls of float32 whose levels leave keys out, one of either variant.
selective = pytest.mark.parametrize("seed", [82, 273])


@selective
def test_wrong_results_are_seen(monkeypatch, seed):
    assert operator.random_call(seed)[0][0].dtype == torch.float32
    check(seed)

    def wrong(*arguments):
        out, kept, share = forward(*arguments)
        out.flatten()[7] += 1
        return out, kept, share

    forward = cpu.forward
    monkeypatch.setattr(cpu, "forward", wrong)
    with pytest.raises(AssertionError, match=f"seed {seed}: "):
        check(seed)


@selective
def test_wrong_selections_are_seen(monkeypatch, seed):
    def wrong(q, k, *rest):  # as if the scores were those of other keys
        _, kept, share = forward(q, [x.flip(2) for x in k], *rest)
        return forward(q, k, *rest)[0], kept, share

    forward = cpu.forward
    monkeypatch.setattr(cpu, "forward", wrong)
    with pytest.raises(AssertionError, match="kept keys: "):
        check(seed)
