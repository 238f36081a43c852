"""Memory on huge pages is like any other."""

import pytest
import torch

from quadtree_attention.ops import memory, modes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32, torch.bfloat16])
def test_empty(dtype):
    like = torch.zeros(3, dtype=torch.float64)
    made = memory.empty((2, 5), like, dtype)
    assert made.shape == (2, 5)
    assert made.dtype == dtype
    assert memory.empty((4,), like).dtype == torch.float64
    assert memory.empty((4,), like.to("meta")).device.type == "meta"


def test_empty_is_filled_with_nan_where_torch_is_told_to():
    torch.use_deterministic_algorithms(True)
    try:
        assert memory.empty((1000,), torch.zeros(1)).isnan().all()
    finally:
        torch.use_deterministic_algorithms(False)


def test_zeros_like():
    x = torch.ones(2, 3)
    assert torch.equal(memory.zeros_like(x), torch.zeros(2, 3))
    assert torch.equal(memory.zeros_like(x.bfloat16()), torch.zeros(2, 3, dtype=torch.bfloat16))


def test_contiguous_copies_and_hands_back_the_gradient():
    x = torch.randn(4, 5, requires_grad=True)
    made = memory.contiguous(x.t())
    assert made.is_contiguous()
    assert torch.equal(made, x.t())
    weight = torch.randn(5, 4)
    (made * weight).sum().backward()
    assert torch.equal(x.grad, weight.t())
    assert memory.contiguous(x) is x


def test_what_counts_as_plain():
    x = torch.randn(3)
    assert modes.is_plain(x)
    assert not modes.is_plain(x, x.clone().requires_grad_())
    assert modes.is_eager(x.clone().requires_grad_())
    assert not modes.is_eager(x.int())
    with torch.no_grad():
        assert modes.is_plain(x.clone().requires_grad_())
    assert not torch.func.vmap(lambda y: y * modes.is_eager(y))(x).any()
