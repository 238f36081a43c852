import pytest
import torch

from quadtree_attention import STTR, LoFTR, load
from quadtree_attention.models.detection.model import MaskRCNN, RetinaNet
from quadtree_attention.models.segmentation import SemanticFPN

NETWORKS = (LoFTR, STTR, RetinaNet, SemanticFPN)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_network_in_the_package(network):
    model = network.from_pretrained()
    assert type(model) is network
    assert not model.training
    want = load("tiny", network.kind).state_dict()
    assert all(torch.equal(value, want[name]) for name, value in model.state_dict().items())


def test_file_and_options(random_weights):
    model = LoFTR.from_pretrained(random_weights, topk=(8, 4))
    assert model.config.topk == (8, 4)
    with pytest.raises(ValueError, match="unexpected keyword argument 'top'"):
        LoFTR.from_pretrained(random_weights, top=8)


def test_another_network_is_named():
    with pytest.raises(ValueError, match=r"expected a MaskRCNN; RetinaNet\.from_pretrained loads it"):
        MaskRCNN.from_pretrained("detect_tiny")
    with pytest.raises(ValueError, match="detect_tiny is for detection"):
        LoFTR.from_pretrained("detect_tiny")
