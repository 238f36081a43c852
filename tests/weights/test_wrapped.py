"""Checkpoints of all five kinds as other trainings write them: wrapped, compiled, averaged, under other suffixes, of other classes."""

import pytest
import torch

from quadtree_attention import Classifier, Detector, Matcher, Segmenter, StereoMatcher
from quadtree_attention.weights import load
from quadtree_attention.weights.loading import convert

from ..fuzz.kinds.weights import networks

KINDS = {
    "matching": (Matcher, "config"),
    "stereo": (StereoMatcher, "config"),
    "classification": (Classifier, "classifier"),
    "detection": (Detector, "detector"),
    "segmentation": (Segmenter, "segmenter"),
}


@pytest.mark.parametrize(
    ("prefix", "name"), [("model.", "last.bin"), ("module.model.", "last.PTH"), ("model._orig_mod.", "last.pth.tar")]
)
@pytest.mark.parametrize("task", KINDS)
def test_of_our_training(task, prefix, name, tmp_path):
    kind, key = KINDS[task]
    model = networks()[task]
    state = {prefix + name: value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state, key: vars(model.config), "model": type(model).__name__}, tmp_path / name)
    for loaded in (
        kind.from_pretrained(tmp_path / name, device="cpu").model,
        convert(tmp_path / name, tmp_path / "out.safetensors"),
        kind.from_pretrained(tmp_path / "out.safetensors", device="cpu").model,
    ):
        torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema", "state_dict", "model"])
def test_a_classifier_of_timms_training_with_other_classes(key, tmp_path):
    import timm

    model = timm.create_model("quadtree_b0", num_classes=7)
    torch.save({"epoch": 3, "arch": "quadtree_b0", key: model.state_dict()}, tmp_path / "best.pth.tar")
    loaded = load(tmp_path / "best.pth.tar", "classifier")
    assert list(loaded.config.labels) == ["0", "1", "2", "3", "4", "5", "6"]
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    convert(tmp_path / "best.pth.tar", tmp_path / "best.safetensors")
    assert list(load(tmp_path / "best.safetensors", "classifier").config.labels) == list(loaded.config.labels)
