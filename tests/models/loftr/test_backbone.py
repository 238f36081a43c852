import pytest
import torch

from quadtree_attention.models.loftr.backbone import BasicBlock, ResNetFPN


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_maps_at_an_eighth_and_at_a_half(blocks):
    coarse, fine = ResNetFPN(4, (6, 8, 12), blocks).eval()(torch.rand(2, 1, 24, 40))
    assert coarse.shape == (2, 12, 3, 5)
    assert fine.shape == (2, 6, 12, 20)


def test_shortcut_is_projected_only_where_needed():
    assert BasicBlock(4, 4).downsample is None
    assert BasicBlock(4, 6).downsample is not None
    assert BasicBlock(4, 4, 2)(torch.rand(1, 4, 6, 8)).shape == (1, 4, 3, 4)
