"""Folders of models; tests/predict/test_classification.py has those of classifiers, and what goes to the Hub."""

import json

import pytest
import torch

from quadtree_attention import Matcher, StereoMatcher
from quadtree_attention.models.detection import DetectorConfig, build_detector
from quadtree_attention.models.segmentation import SegmenterConfig
from quadtree_attention.predict.detection import Detector
from quadtree_attention.predict.segmentation import Segmenter

SMALL = {"depths": [1, 1, 1, 1], "embed_dims": [8, 8, 16, 16], "num_heads": [1, 1, 2, 2], "mlp_ratios": [2, 2, 2, 2]}


@pytest.mark.parametrize(("kind", "network"), [(Matcher, "LoFTR"), (StereoMatcher, "STTR")])
def test_a_folder_gives_the_model_again(kind, network, tmp_path):
    model = kind.from_pretrained("tiny", device="cpu")
    model.save_pretrained(tmp_path)
    again = kind.from_pretrained(tmp_path, device="cpu")
    assert again.model.config == model.model.config
    torch.testing.assert_close(again.model.state_dict(), model.model.state_dict(), rtol=0, atol=0)
    assert json.loads((tmp_path / "config.json").read_text())["model"] == network
    assert f'{kind.__name__}.from_pretrained("hf-hub:OWNER/NAME")' in (tmp_path / "README.md").read_text()
    other = StereoMatcher if kind is Matcher else Matcher
    with pytest.raises(ValueError, match=r"is of a (matcher|stereo network), expected a"):
        other.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(IsADirectoryError, match=r"is a folder without model.safetensors, expected one that"):
        kind.from_pretrained(tmp_path)


def test_detectors_and_segmenters_too(tmp_path):
    config = DetectorConfig("retinanet", "quadtree_b0", ["cat"], [17], options=SMALL, channels=8, features=8)
    detector = Detector(build_detector(config), "cpu")
    segmenter = Segmenter(SegmenterConfig("quadtree_b0", ["cat", "dog"], SMALL, 16, 16).build(), "cpu")
    for model in (detector, segmenter):
        folder = tmp_path / type(model).__name__
        model.save_pretrained(folder)
        again = type(model).from_pretrained(folder, device="cpu")
        assert list(again.config.labels) == list(model.config.labels)
        torch.testing.assert_close(again.model.state_dict(), model.model.state_dict(), rtol=0, atol=0)
        assert json.loads((folder / "config.json").read_text())["labels"] == list(model.config.labels)
        with pytest.raises(IsADirectoryError, match="is a folder without"):
            type(model).from_pretrained(tmp_path)
