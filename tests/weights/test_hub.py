"""Folders of models; tests/predict/test_classification.py has those of classifiers, and what goes to the Hub."""

import json

import pytest
import torch

from quadtree_attention import Matcher, StereoMatcher


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
    with pytest.raises(ValueError, match="has no configuration of a"):
        other.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(IsADirectoryError, match=r"is a folder without model.safetensors, expected one that"):
        kind.from_pretrained(tmp_path)
