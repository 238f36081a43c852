"""Fine matching: what is compared with what, hypotheses, and that it corrects a coarse disparity."""

from dataclasses import replace

import pytest
import torch

from quadtree_attention.models.sttr import STTR, STTR_PRESETS, STTRConfig
from quadtree_attention.models.sttr.fine import GROUPS, FineMatching, hypotheses, similarities
from quadtree_attention.tasks.stereo.loss import SPREAD, StereoTruth, fine_loss


def test_similarities_compare_a_pixel_with_those_about_its_hypotheses():
    torch.manual_seed(0)
    left, right = torch.randn(2, 2, 8, 3, 12)
    disparity = torch.rand(2, 3, 3, 12) * 6 - 1
    got = similarities(torch.cat([left, right]), disparity, 2)
    assert got.shape == (2, 3, 5, GROUPS, 3, 12)
    unit = [torch.nn.functional.normalize(x.unflatten(1, (GROUPS, 2)), dim=2) for x in (left, right)]
    for b, k, o, g, y, x in torch.cartesian_prod(*map(torch.arange, got.shape))[::97].tolist():
        place = x - float(disparity[b, k, y, x]) - (o - 2)
        want = 0.0
        for column in range(12):
            if abs(column - place) < 1:  # linear interpolation between the two next to it
                alike = (unit[0][b, g, :, y, x] * unit[1][b, g, :, y, column]).sum()
                want += (1 - abs(column - place)) * float(alike)
        assert float(got[b, k, o, g, y, x]) == pytest.approx(want, abs=1e-5)


def test_hypotheses_are_own_least_and_greatest():
    raw = torch.tensor([[[8.0, 8.0, 8.0, 2.0, 2.0]] * 3])
    own, least, greatest = hypotheses(raw, (6, 10), 4)[0]
    assert own[0].tolist() == [8] * 6 + [2] * 4  # a step stays a step
    assert least[0].tolist() == [8] * 4 + [2] * 6
    assert greatest[0].tolist() == [8] * 8 + [2] * 2


def test_starts_from_what_is_alike():
    """Untrained, it finds a shift of pixels that tokens miss by two."""
    torch.manual_seed(0)
    fine = FineMatching(STTR_PRESETS["tiny"]).eval()
    with torch.no_grad():
        fine.sharpness.fill_(50.0)
    half, tokens = torch.randn(1, 32, 12, 46), torch.zeros(2, 64, 6, 20)
    half = torch.cat([half[..., :40], half[..., 6:]])  # 6 pixels of 1/2: 12 of the image
    with torch.inference_mode():
        found = fine(half, tokens, torch.full((1, 6, 20), 10.0), torch.ones(1, 6, 20))
    assert (found.best()[0, :, 10:] - 12).abs().mean() < 0.1
    assert found.weight.exp().sum(1).sub(1).abs().max() < 1e-5


def test_loss_is_the_likelihood_of_a_mixture():
    start = torch.tensor([4.0, 4.0, 9.0]).view(1, 3, 1, 1)
    disparity = torch.tensor([4.5, 4.5, 9.0]).view(1, 3, 1, 1)
    weight = torch.tensor([0.25, 0.25, 0.5]).log().view(1, 3, 1, 1)
    from quadtree_attention.models.sttr.fine import Fine

    def loss(truth: float) -> torch.Tensor:
        full = torch.full((1, 2, 2), truth)
        return fine_loss(Fine(start, disparity, weight), StereoTruth(full, full > 1e9, None, 4))

    def density(x: float) -> float:
        parts = torch.tensor([abs(x - 4.5), abs(x - 4.5), abs(x - 9.0)])
        return float((torch.tensor([0.25, 0.25, 0.5]) * (-parts / SPREAD).exp() / (2 * SPREAD)).sum())

    for truth in (4.5, 7.0, 9.25):
        assert float(loss(truth)) == pytest.approx(-torch.tensor(density(truth)).log().item(), abs=1e-4)
    assert loss(30.0) == 0  # too far from all of them: nothing to learn


def test_whole_network_has_it_and_learns():
    torch.manual_seed(0)
    config = replace(STTR_PRESETS["tiny"], fine_dim=8, fine_reach=1)
    model = STTR(config)
    left, right = torch.rand(2, 1, 3, 35, 62)
    out = model(left, right)
    assert out.fine.disparity.shape == (1, 3, 18, 31)
    truth = StereoTruth(torch.full((1, 35, 62), 3.0), torch.zeros(1, 35, 62, dtype=torch.bool), None, config.stride)
    fine_loss(out.fine, truth).backward()
    for name, parameter in model.fine.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert model.features.stem[0].weight.grad.abs().max() > 0
    assert model.transformer.layers[0].attn.q_proj.weight.grad is None  # where tokens match is not its business


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (17, 40)])
def test_any_size(size):
    left, right = torch.rand(2, 2, 3, *size)
    with torch.inference_mode():
        out = STTR(STTR_PRESETS["tiny"]).eval()(left, right)
    assert out.disparity.shape == (2, *size)
    assert out.disparity.isfinite().all()


def test_published_presets_do_without():
    assert STTR_PRESETS["sttr"].fine_dim == STTR_PRESETS["quadtree"].fine_dim == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fine_dim": 6}, "multiple of 4"),
        ({"fine_dim": -4}, "multiple of 4"),
        ({"fine_dim": 8, "resolution": 1}, "resolution 4"),
    ],
)
def test_options_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        STTRConfig(**{"resolution": 4, "stride": 4, "growth": 32, **changes})
