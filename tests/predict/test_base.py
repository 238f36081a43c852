import numpy as np
import pytest
import torch

from quadtree_attention import Classifier, Detector, Matcher, Segmenter, StereoMatcher, load

IMAGE = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
PREDICTORS = {
    "matcher": (Matcher, lambda one: one.match(IMAGE, IMAGE, threshold=0.0).confidence),
    "stereo": (StereoMatcher, lambda one: one.match(IMAGE, IMAGE).disparity),
    "classifier": (Classifier, lambda one: one.classify(IMAGE).probabilities),
    "detector": (Detector, lambda one: one.detect(IMAGE, score=0).scores),
    "segmenter": (Segmenter, lambda one: one.segment(IMAGE).probabilities),
}


@pytest.mark.parametrize("kind", PREDICTORS)
def test_the_network_stays_as_it_is(kind):
    make, predict = PREDICTORS[kind]
    model = load("tiny", kind).train()
    frozen = next(part for part in model.modules() if isinstance(part, torch.nn.BatchNorm2d | torch.nn.LayerNorm))
    frozen.eval()
    modes = [part.training for part in model.modules()]
    state = {name: (value.clone(), value.stride()) for name, value in model.state_dict().items()}
    predict(make(model))
    assert [part.training for part in model.modules()] == modes
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name][0])
        assert value.stride() == state[name][1]
    assert not any(part._forward_hooks for part in model.modules())


def test_weights_are_shared():
    model = load("tiny", "matcher")
    matcher = Matcher(model)
    before = PREDICTORS["matcher"][1](matcher)
    with torch.no_grad():
        for parameter in model.coarse.parameters():
            parameter.mul_(0.5)
    assert not np.array_equal(PREDICTORS["matcher"][1](matcher), before)
    assert matcher.device == torch.device("cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_another_device_takes_a_copy():
    model = load("tiny", "matcher")
    matcher = Matcher(model, "cuda")
    assert next(model.parameters()).device.type == "cpu"
    assert next(matcher.model.parameters()).device.type == "cuda"
    assert Matcher(model.cuda()).device.type == "cuda"
