"""The whole network: shapes of any size, batches, both views, gradients, short floats."""

from dataclasses import replace

import pytest
import torch

from quadtree_attention.models.sttr import STTR, STTR_PRESETS, STTRConfig
from quadtree_attention.models.sttr.model import right_view

LIGHT = STTRConfig(
    stem_dims=(4, 4, 8),
    stage_dims=(8, 8),
    blocks_per_stage=1,
    pool_dim=4,
    growth=4,
    dense_layers=2,
    dim=8,
    resolution=4,
    stride=4,
    num_heads=2,
    num_layers=2,
    topk=(2, 2, 2),
    context_blocks=1,
    context_dim=4,
    context_expansion=1,
)
WHOLE = replace(LIGHT, resolution=1, stride=3, dim=16)


def network(config: STTRConfig = LIGHT, **changes) -> STTR:
    torch.manual_seed(0)
    model = STTR(replace(config, **changes))
    for module in model.modules():  # so that every part has a say
        if hasattr(module, "proj"):
            torch.nn.init.normal_(module.proj.weight, std=0.1)
    torch.nn.init.normal_(model.context.leave.weight, std=0.1)
    return model.eval()


def pair(height=33, width=70, shift=8, batch=2):
    torch.manual_seed(1)
    image = torch.rand(batch, 3, height, width + shift)
    return image[..., :width], image[..., shift:]


@pytest.mark.parametrize("config", [LIGHT, WHOLE], ids=["light", "whole"])
@pytest.mark.parametrize("size", [(33, 70), (1, 1), (16, 5), (48, 64)])
def test_any_size(config, size):
    left, right = torch.rand(2, 2, 3, *size)
    with torch.inference_mode():
        out = network(config)(left, right)
    for name in ("disparity", "occlusion", "confidence", "logit"):
        assert getattr(out, name).shape == (2, *size)
        assert getattr(out, name).isfinite().all()
    assert (out.disparity >= 0).all()
    for share in (out.occlusion, out.confidence):
        assert ((share >= 0) & (share <= 1 + 1e-5)).all()
    h, w = out.raw.shape[1:]
    assert out.shares.shape == (2, h, w + 1, w + 1)
    assert (h - 1) * config.stride < size[0] <= max(h * config.stride + config.stride // 2 + 1, 4)


@pytest.mark.parametrize(
    "changes",
    [
        {"attention": "quadtree_a"},
        {"attention": "full"},
        {"attention": "full", "position": "relative"},
        {"attention": "full", "position": "none"},
    ],
)
def test_choices(changes):
    with torch.inference_mode():
        out, other = network(**changes)(*pair()), network()(*pair())
    assert out.disparity.isfinite().all()
    assert not torch.allclose(out.shares, other.shares, atol=1e-3)


def test_a_batch_gives_what_each_pair_gives():
    model, (left, right) = network(), pair()
    with torch.inference_mode():
        together = model(left, right)
        for k in range(2):
            alone = model(left[k : k + 1], right[k : k + 1])
            for got, want in zip(alone[:-1], together[:-1], strict=True):  # it has no fine matching
                torch.testing.assert_close(got[0], want[k], atol=1e-4, rtol=1e-4)


def test_no_match_lies_to_the_right():
    with torch.inference_mode():
        shares = network()(*pair()).shares[..., :-1, :-1].exp()
    assert not shares.triu(1).any()


def test_exposure_does_not_matter():
    model, (left, right) = network(), pair()
    with torch.inference_mode():
        torch.testing.assert_close(
            model(left, 0.5 * right + 0.2).disparity, model(left, right).disparity, atol=0.05, rtol=0.02
        )


def test_a_new_network_finds_a_shift():
    """Attention starts as the identity, and what looks alike matches: the disparity of noise is there from the start."""
    torch.manual_seed(0)
    model = STTR(STTR_PRESETS["tiny"]).train()  # batch statistics
    left, right = pair(64, 128, shift=16)
    with torch.no_grad():
        out = model(left, right)
    assert (out.raw[..., 6:] - 16).abs().median() < 0.5


def test_corrections_can_be_limited():
    images = pair()
    with torch.inference_mode():
        free, none, half = (network(context_limit=limit)(*images).disparity for limit in (None, 0.0, 0.5))
        training = network(context_limit=0.0).train()(*images).disparity
        free_training = network().train()(*images).disparity
    assert 0 < (half - none).abs().max() <= 0.5 + 1e-4 < (free - none).abs().max()
    torch.testing.assert_close(training, free_training)


def test_right_view_is_the_mirror():
    model, (left, right) = network(), pair()
    with torch.inference_mode():
        twice = right_view(*right_view(left, right))
        assert all(torch.equal(a, b) for a, b in zip(twice, (left, right), strict=True))
        assert model(*right_view(left, right)).disparity.flip(-1).shape == left[:, 0].shape


@pytest.mark.parametrize("attention", ["quadtree_a", "quadtree_b"])
def test_every_parameter_learns(attention):
    model = network(attention=attention).train()
    out = model(*pair())
    weight = torch.randn_like(out.shares)
    (
        out.disparity.sum() + out.raw.square().sum() + out.logit.sum() + (out.shares.clamp(min=-50) * weight).mean()
    ).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_recomputing_changes_nothing():
    gradients = []
    for recompute in (False, True):
        model = network().train()
        model.transformer.recompute = recompute
        model(*pair()).raw.sum().backward()
        gradients.append([p.grad for p in model.transformer.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_bfloat16_autocast():
    model, images = network(), pair()
    with torch.inference_mode():
        exact = model(*images)
        with torch.autocast("cpu", torch.bfloat16):
            short = model(*images)
    assert short.shares.dtype == torch.float32
    assert all(x.isfinite().all() for x in (short.disparity, short.occlusion, short.confidence))
    assert (short.confidence - exact.confidence).abs().mean() < 0.1


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        (torch.rand(1, 1, 8, 8), torch.rand(1, 1, 8, 8), r"left has shape \(1, 1, 8, 8\), expected \[B, 3, H, W\]"),
        (torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 9), "expected one shape: views of a rectified pair"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.rand(1, 3, 8, 8), "expected floats in 0..1"),
        (torch.rand(1, 3, 0, 8), torch.rand(1, 3, 0, 8), "at least one image and one pixel"),
    ],
)
def test_bad_images(left, right, message):
    with pytest.raises(ValueError, match=message):
        network()(left, right)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "linear"}, "attention is 'linear', expected one of quadtree_a, quadtree_b, full"),
        ({"position": "relative"}, "position is 'relative' with attention 'quadtree_b'"),
        ({"topk": (4,)}, "topk is .* expected 3"),
        ({"dim": 10}, "expected a multiple of 4 channels for each of num_heads"),
        ({"stride": 6}, "stride is 6, expected a multiple of resolution"),
        ({"growth": 8}, r"expected growth \* dense_layers = 16"),
        ({"context_limit": -1.0}, "context_limit is -1.0, expected pixels of at least 0"),
        ({"context_dim": 0}, "context_dim is 0, expected at least 1"),
        ({"stem_dims": (4, 4)}, "stem_dims is .* expected 3 numbers"),
    ],
)
def test_bad_configurations(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(LIGHT, **changes)


@pytest.mark.parametrize("changes", [{}, {"attention": "full"}, {"attention": "full", "position": "relative"}])
def test_rows_in_groups_give_what_all_at_once_give(changes):
    model, (left, right) = network(**changes), pair(height=41)
    with torch.inference_mode():
        model.transformer.tokens_at_once = None
        want = model(left, right)
        model.transformer.tokens_at_once = 50  # 18 tokens a row: two rows, the last group has one
        got = model(left, right)
    torch.testing.assert_close(got.shares, want.shares, atol=1e-4, rtol=1e-4)
    model.train()  # with a gradient there are no groups, and both images go together
    assert model(left, right).disparity.requires_grad
