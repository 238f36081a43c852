import pytest
import torch

from quadtree_attention.models.loftr import LoFTRConfig
from quadtree_attention.models.loftr.transformer import coarse_transformer

ATTENTIONS = ["quadtree_a", "quadtree_b", "linear", "sr", "full"]
BLOCKS = ["vit", "loftr"]


def transformer(attention, block, **changes):
    torch.manual_seed(1)
    options = {"block_dims": (8, 8, 16), "num_heads": 2, "num_layers": 2, "topk": (4, 4), "sr_pool": 2} | changes
    return coarse_transformer(LoFTRConfig(attention=attention, block=block, **options)).double()


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("block", BLOCKS)
def test_every_attention_in_every_block_trains(attention, block):
    model = transformer(attention, block)
    feat0, feat1 = noise(2, 9, 7, 16).requires_grad_(), noise(2, 6, 5, 16).requires_grad_()
    out0, out1 = model(feat0, feat1)
    assert out0.shape == feat0.shape
    assert out1.shape == feat1.shape
    (out0.square().sum() + out1.square().sum()).backward()
    for tensor in (feat0, feat1, *model.parameters()):
        assert tensor.grad.isfinite().all()
        assert tensor.grad.abs().sum() > 0


@pytest.mark.parametrize("attention", [kind for kind in ATTENTIONS if kind != "sr"])
@pytest.mark.parametrize("block", BLOCKS)
def test_padding_changes_nothing(attention, block):
    """Images of other sizes, padded to one batch with garbage under the mask, give what each gives alone."""
    model = transformer(attention, block)
    sizes0, sizes1 = [(8, 6), (5, 7)], [(7, 8), (8, 3)]

    def batch(sizes, seed):
        singles = [noise(1, *size, 16) + seed for size in sizes]
        padded = 100 + noise(len(sizes), 8, 8, 16)
        mask = torch.zeros(len(sizes), 8, 8, dtype=torch.bool)
        for index, (height, width) in enumerate(sizes):
            padded[index, :height, :width] = singles[index][0]
            mask[index, :height, :width] = True
        return singles, padded, mask

    singles0, padded0, mask0 = batch(sizes0, 0)
    singles1, padded1, mask1 = batch(sizes1, 1)
    out0, out1 = model(padded0, padded1, mask0, mask1)
    for index in range(2):
        alone0, alone1 = model(singles0[index], singles1[index])
        for out, alone in ((out0, alone0), (out1, alone1)):
            height, width = alone.shape[1:3]
            torch.testing.assert_close(out[index, :height, :width], alone[0], rtol=0, atol=1e-10)
    assert out0.isfinite().all()
    assert out1.isfinite().all()


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("block", BLOCKS)
def test_what_lies_under_the_mask_is_not_seen(attention, block):
    model = transformer(attention, block)
    feat, other = noise(1, 6, 6, 16), noise(1, 5, 6, 16)
    mask = torch.ones(1, 6, 6, dtype=torch.bool)
    mask[:, 4:], mask[:, :, 5:] = False, False
    changed = torch.where(mask[..., None], feat, 50 - feat)
    (a0, a1), (b0, b1) = (model(x, other, mask, None) for x in (feat, changed))
    torch.testing.assert_close(a0[mask], b0[mask], rtol=0, atol=1e-12)
    torch.testing.assert_close(a1, b1, rtol=0, atol=1e-12)


def test_vit_crosses_both_at_once_and_loftr_in_turn():
    feat0, feat1 = noise(1, 4, 4, 16), noise(1, 4, 3, 16)
    for block, at_once in (("vit", True), ("loftr", False)):
        model = transformer("full", block, num_layers=1)
        own, cross = model.layers
        x0, x1 = own(feat0), own(feat1)
        y0 = cross(x0, x1)
        y1 = cross(x1, x0 if at_once else y0)
        out0, out1 = model(feat0, feat1)
        torch.testing.assert_close(out0, y0)
        torch.testing.assert_close(out1, y1)


def test_nothing_valid_gives_no_nan():
    for attention in ATTENTIONS:
        model = transformer(attention, "vit")
        mask = torch.zeros(1, 4, 4, dtype=torch.bool)
        outs = model(noise(1, 4, 4, 16), noise(1, 3, 5, 16), mask, None)
        assert all(out.isfinite().all() for out in outs)
