"""Losses and metrics of stereo, on numbers that can be checked by hand."""

import math

import pytest
import torch

from quadtree_attention.evaluation.stereo import disparity_metrics, occlusion_iou
from quadtree_attention.models.sttr import StereoOutput
from quadtree_attention.tasks.stereo.loss import (
    StereoTruth,
    disparity_loss,
    occlusion_loss,
    relative_response,
    stereo_losses,
)


def truth_of(disparity, occluded=None, occluded_right=None, stride=1):
    disparity = torch.as_tensor(disparity, dtype=torch.float32)[None, None]
    occluded = torch.zeros_like(disparity, dtype=torch.bool) if occluded is None else torch.tensor(occluded)[None, None]
    right = None if occluded_right is None else torch.tensor(occluded_right)[None, None]
    return StereoTruth(disparity, occluded, right, stride)


def test_what_is_known_and_visible():
    truth = truth_of([0.0, 0.5, math.nan, 4.0, 2.0, -1.0], [False, False, False, False, True, False])
    assert truth.known[0, 0].tolist() == [False, True, False, True, True, False]
    assert truth.visible[0, 0].tolist() == [False, True, False, False, False, False]  # 4 leads out of the right image
    assert truth.disparity.isfinite().all()


def test_tokens_take_the_pixel_in_their_middle():
    truth = truth_of(torch.arange(10.0), stride=4)
    assert truth.at_tokens(truth.disparity, (1, 3)).tolist() == [[[2, 6, 9]]]


def test_response_is_looked_for_between_tokens():
    torch.manual_seed(0)
    shares = torch.randn(1, 1, 5, 5).log_softmax(-1)
    truth = truth_of([math.nan, 1.0, 0.25, 0.0], [False] * 4)
    mass = shares[0, 0].exp()
    want = torch.stack([mass[1, 0], 0.25 * mass[2, 1] + 0.75 * mass[2, 2]])
    torch.testing.assert_close(relative_response(shares, truth), -want.log().mean(), atol=1e-4, rtol=1e-4)


def test_response_of_hidden_tokens_is_the_dustbin():
    torch.manual_seed(0)
    shares = torch.randn(1, 1, 4, 4).log_softmax(-1)
    truth = truth_of([0.0, 0.0, 0.0], [True, False, True], [False, True, False])
    want = -torch.stack([shares[0, 0, 0, 3], shares[0, 0, 2, 3], shares[0, 0, 3, 1]]).mean()
    torch.testing.assert_close(relative_response(shares, truth), want)


def test_response_learns_from_next_to_nothing():
    shares = torch.full((1, 1, 3, 3), -300.0, requires_grad=True)
    relative_response(shares, truth_of([math.nan, 1.0])).backward()
    assert shares.grad[0, 0, 1, 0] == pytest.approx(-1, abs=1e-4)


def test_nothing_known_is_no_loss_and_no_nan():
    output = StereoOutput(
        *(torch.rand(1, 2, 2, requires_grad=True) for _ in range(4)), torch.zeros(1, 2, 3, 3), torch.rand(1, 2, 2)
    )
    nothing = torch.zeros(1, 2, 2)
    parts = stereo_losses(output, StereoTruth(nothing, nothing.bool(), None, 1))
    assert {name: float(value.detach()) for name, value in parts.items()} == dict.fromkeys(parts, 0.0)
    assert set(parts) == {"response", "raw", "disparity", "occlusion"}


def test_smooth_l1_and_cross_entropy():
    valid = torch.tensor([[[True, True, False]]])
    got = disparity_loss(torch.tensor([[[1.5, 4.0, 9.0]]]), torch.tensor([[[1.0, 1.0, 1.0]]]), valid)
    assert float(got) == pytest.approx((0.125 + 2.5) / 2)
    got = occlusion_loss(torch.tensor([[[0.0, 100.0, 5.0]]]), torch.tensor([[[True, True, False]]]), valid)
    assert float(got) == pytest.approx(math.log(2) / 2)


def test_metrics():
    truth = torch.tensor([[10.0, 10, 10, 100, 100, 10]])
    error = torch.tensor([[0.0, 1.5, 2.5, 4.0, 6.0, 50]])
    valid = torch.tensor([[True] * 5 + [False]])
    got = {name: float(value) for name, value in disparity_metrics(truth + error, truth, valid).items()}
    assert got == pytest.approx({"epe": 2.8, "bad@1": 0.8, "bad@2": 0.6, "bad@3": 0.4, "d1": 0.2})
    assert math.isnan(disparity_metrics(truth, truth, ~valid & False)["epe"])


def test_occlusion_iou():
    occlusion = torch.tensor([[0.9, 0.6, 0.1, 0.2]])
    occluded = torch.tensor([[True, False, False, True]])
    assert float(occlusion_iou(occlusion, occluded)) == pytest.approx(2 / 6)  # 1 of 3 hidden, 1 of 3 seen
    assert float(occlusion_iou(occlusion, occluded, torch.tensor([[True, False, True, False]]))) == 1
