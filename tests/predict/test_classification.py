import json
import shutil

import huggingface_hub
import numpy as np
import pytest
import timm
import torch

from quadtree_attention.models.classifier import ClassifierConfig
from quadtree_attention.predict.classification import Classifier, save_classifications


def test_classifier_says_what_an_image_shows(photo, tmp_path):
    classifier = Classifier.from_pretrained("classify_tiny", device="cpu")
    found = classifier.classify(photo, top=3)
    assert len(found) == 3
    assert set(found.labels) <= set(classifier.config.labels)
    assert list(found.probabilities) == sorted(found.probabilities, reverse=True)
    everything = classifier.classify(torch.from_numpy(photo).permute(2, 0, 1) / 255, top=99)
    assert len(everything) == len(classifier.config.labels) == 10
    assert everything.probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert everything.labels[:3] == found.labels
    assert [classifier.config.labels[i] for i in found.indices] == list(found.labels)
    with pytest.raises(ValueError, match="top is 0, expected at least 1"):
        classifier.classify(photo, top=0)
    save_classifications(["a.png"], [found], tmp_path / "a.json")
    (entry,) = json.loads((tmp_path / "a.json").read_text())
    assert (entry["image"], entry["classes"][0]["label"]) == ("a.png", found.labels[0])
    save_classifications(["a.png"], [found], tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text().splitlines()[0] == "image,rank,label,probability"
    with pytest.raises(ValueError, match=r"unknown suffix '.txt', expected .json or .csv"):
        save_classifications(["a.png"], [found], tmp_path / "a.txt")


SMALL = {"depths": [1, 1, 1, 1], "embed_dims": [8, 8, 16, 16], "num_heads": [1, 1, 2, 2], "mlp_ratios": [2, 2, 2, 2]}


@pytest.fixture
def grey():
    """A classifier of grey images with options of its own."""
    torch.manual_seed(0)
    options = {**SMALL, "topk": 4}
    config = ClassifierConfig("quadtree_b0", ["cat", "dog", "emu"], options, [1, 40, 32], [0.4], [0.3], crop_pct=0.8)
    return Classifier(config.build(), "cpu")


def same(got, want):
    assert got.labels == want.labels
    np.testing.assert_allclose(got.probabilities, want.probabilities, rtol=0, atol=1e-6)


def test_a_folder_is_taken_by_us_and_by_timm(grey, photo, tmp_path):
    grey.save_pretrained(tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert "pipeline_tag: image-classification\n" in (folder / "README.md").read_text()
    again = Classifier.from_pretrained(folder, device="cpu")
    assert again.config.crop_pct == 0.8
    same(again.classify(photo), grey.classify(photo))
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    torch.testing.assert_close(network.state_dict(), grey.model.state_dict())
    assert network.stages[0].blocks[0].attn.topk == (4, 4, 4)
    assert network.pretrained_cfg["label_names"] == ["cat", "dog", "emu"]
    assert timm.data.resolve_model_data_config(network)["crop_pct"] == 0.8
    (folder / "README.md").write_text("mine")
    grey.save_pretrained(folder, half=True)
    assert (folder / "README.md").read_text() == "mine"


def test_a_folder_of_timm_is_taken(photo, tmp_path):
    from timm.models import save_for_hf

    torch.manual_seed(0)
    model = timm.create_model("pvt_v2_b0", num_classes=2, **SMALL).eval()
    save_for_hf(
        model, tmp_path, model_config={"label_names": ["day", "night"]}, model_args=SMALL, safe_serialization=True
    )
    found = Classifier.from_pretrained(tmp_path, device="cpu").classify(photo)
    assert set(found.labels) == {"day", "night"}
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(IsADirectoryError, match=r"is a folder without model.safetensors, expected one that"):
        Classifier.from_pretrained(tmp_path)


def test_the_hub(grey, photo, tmp_path, monkeypatch):
    """What goes to the Hub comes back from it; a folder stands for it."""
    calls = []

    class Api:
        def __init__(self, token=None):
            calls.append(token)

        def create_repo(self, repository, *, private, exist_ok):
            calls.append((repository, private, exist_ok))

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, tmp_path / repo_id)
            return f"https://hub/{repo_id}/commit/1"

    def download(repository, name, revision):
        if not (tmp_path / repository).exists():
            raise OSError("404\nnot found")
        calls.append(revision)
        return str(tmp_path / repository / name)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert grey.push_to_hub("me/pets", private=True, card="# Pets", token="t") == "https://hub/me/pets/commit/1"
    assert (tmp_path / "me" / "pets" / "README.md").read_text() == "# Pets"
    same(Classifier.from_pretrained("hf-hub:me/pets@v1", device="cpu").classify(photo), grey.classify(photo))
    assert calls == ["t", ("me/pets", True, True), "v1"]
    with pytest.raises(OSError, match=r"cannot download model.safetensors of hf-hub:me/none: 404 not found"):
        Classifier.from_pretrained("hf-hub:me/none")
