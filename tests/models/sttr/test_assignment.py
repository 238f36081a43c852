"""Optimal transport against its definition, and the regression on hand-made shares."""

import pytest
import torch

from quadtree_attention.models.sttr.assignment import fill_from_behind, optimal_transport, regress, spread


def transported(scores, dustbin, iterations, causal=False):
    """Sinkhorn by repeated scaling of plain numbers."""
    width = len(scores)
    padded = torch.full((width + 1, width + 1), dustbin, dtype=torch.float64)
    padded[:width, :width] = scores
    mass = padded.exp()
    if causal:
        mass[:width, :width] *= torch.ones(width, width).tril()
    room = torch.ones(width + 1, dtype=torch.float64)
    room[-1] = width
    for _ in range(iterations):
        mass = mass * (room / mass.sum(0))
        mass = mass * (room / mass.sum(1))[:, None]
    return mass


@pytest.mark.parametrize("causal", [False, True])
def test_transport_is_sinkhorn(causal):
    torch.manual_seed(0)
    scores = 3 * torch.randn(2, 3, 6, 6, dtype=torch.float64)
    got = optimal_transport(scores, torch.tensor(0.5), 7, causal=causal).exp()
    for b in range(2):
        for row in range(3):
            torch.testing.assert_close(got[b, row], transported(scores[b, row], 0.5, 7, causal))
    torch.testing.assert_close(got[..., :-1, :].sum(-1), torch.ones(2, 3, 6, dtype=torch.float64))
    if causal:
        assert not got[..., :-1, :-1].triu(1).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_transport_is_in_full_precision(dtype):
    torch.manual_seed(0)
    scores = (30 * torch.randn(1, 2, 9, 9)).to(dtype).requires_grad_()
    dustbin = torch.zeros((), requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        shares = optimal_transport(scores, dustbin, 10)
    assert shares.dtype == torch.float32
    torch.testing.assert_close(shares, optimal_transport(scores.float(), dustbin, 10))
    shares[..., :-1, :].exp().square().sum().backward()
    assert scores.grad.isfinite().all()
    assert dustbin.grad.isfinite()


def test_transport_bears_extremes():
    scores = torch.tensor([[1e4, -1e4], [1e4, 1e4]]).expand(1, 1, 2, 2)
    shares = optimal_transport(scores, torch.tensor(0.0), 10)
    assert not shares.isnan().any()
    torch.testing.assert_close(shares[..., :-1, :].exp().sum(-1), torch.ones(1, 1, 2), atol=1e-3, rtol=0)
    assert optimal_transport(torch.zeros(1, 1, 1, 1), torch.tensor(0.0), 3).isfinite().all()


def test_regression_in_a_window_of_three():
    shares = torch.zeros(1, 1, 6, 6)
    shares[0, 0, 5, 1:4] = torch.tensor([0.2, 0.5, 0.1])  # distances 4, 3, 2
    shares[0, 0, 5, 5] = 0.15  # out of the window
    shares[0, 0, 3, 3] = 1.0
    shares[0, 0, 4, 0] = 0.9  # at the border: the window has two
    disparity, confidence = regress(shares)
    assert confidence[0, 0, 3:].tolist() == pytest.approx([1.0, 0.9, 0.8])
    assert disparity[0, 0, 3:].tolist() == pytest.approx([0.0, 4.0, (0.2 * 4 + 0.5 * 3 + 0.1 * 2) / 0.8])


def test_hidden_tokens_are_behind():
    disparity = torch.tensor([[[9.0, 2.0, 9.0, 9.0, 7.0, 9.0], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]]])
    known = torch.tensor([[[False, True, False, False, True, False], [False] * 6]])
    assert fill_from_behind(disparity, known).tolist() == [[[2, 2, 2, 2, 7, 7], [0] * 6]]


def test_fill_has_no_gradient():
    disparity = torch.arange(4.0).expand(1, 1, 4).clone().requires_grad_()
    fill_from_behind(disparity, torch.tensor([[[True, False, False, True]]])).sum().backward()
    assert disparity.grad.tolist() == [[[1, 0, 0, 1]]]


def test_spread_keeps_surfaces_smooth_and_steps_steep():
    ramp = torch.arange(5.0).expand(1, 3, 5)
    got = spread(ramp, (12, 20), 4, 1.0)
    place = (torch.arange(20.0) - 1.5) / 4  # a token stands in the middle of its pixels
    torch.testing.assert_close(got[0, 5], place.clamp(0, 4))
    step = torch.tensor([0.0, 0, 9, 9]).expand(1, 2, 4)
    assert spread(step, (6, 12), 3, 1.0)[0, 0].tolist() == [0.0] * 6 + [9.0] * 6
    assert spread(ramp, (13, 22), 4, 1.0).shape == (1, 13, 22)
    assert spread(ramp, (11, 18), 4, 1.0).shape == (1, 11, 18)
