"""The table of weights: what comes in the package is there, small, described, and loads as "tiny" for its task."""

import hashlib

import pytest

from quadtree_attention import Classifier, Detector, Matcher, Segmenter, StereoMatcher
from quadtree_attention.weights.registry import PRETRAINED, locate, weights_identity

EMBEDDED = [row for row in PRETRAINED.values() if row.url is None]
CLASSES = {
    "matching": Matcher,
    "stereo": StereoMatcher,
    "classification": Classifier,
    "detection": Detector,
    "segmentation": Segmenter,
}


@pytest.mark.parametrize("row", EMBEDDED, ids=lambda row: row.name)
def test_embedded_weights_have_a_card_that_names_them(row):
    content = row.path.read_bytes()
    assert len(content) < 8e6
    assert len(content) / 1e6 == pytest.approx(row.megabytes, abs=0.3)
    card = row.card.read_text(encoding="utf-8")
    assert hashlib.sha256(content).hexdigest() in card
    for what in ("**Licence of the weights**", "**Data**", "**Training**", "**Results**", "**Limits**"):
        assert what in card


@pytest.mark.parametrize("task", CLASSES)
def test_tiny_is_for_every_task(task):
    path, row = locate("tiny", task)
    assert row in EMBEDDED
    assert path == row.path
    assert type(CLASSES[task].from_pretrained("tiny", device="cpu")) is CLASSES[task]


def test_names_of_other_tasks_and_unknown_ones(tmp_path):
    with pytest.raises(ValueError, match="outdoor is for matching, expected tiny, segment_tiny, "):
        locate("outdoor", "segmentation")
    with pytest.raises(ValueError, match="unknown model 'nothing', expected one of tiny, stereo_tiny, or the path"):
        locate("nothing", "stereo")
    with pytest.raises(FileNotFoundError, match=r"gone.ckpt does not exist, expected a file of weights or one of tiny"):
        locate(tmp_path / "gone.ckpt", "detection")
    (tmp_path / "weights.txt").write_text("")
    with pytest.raises(ValueError, match=r"unknown suffix '.txt', expected .safetensors, .ckpt, .pth, .pt"):
        locate(tmp_path / "weights.txt", "matching")


def test_identity_is_of_the_content(tmp_path, monkeypatch):
    assert (
        weights_identity("tiny")
        == f"tiny.safetensors {hashlib.sha256(PRETRAINED['tiny'].path.read_bytes()).hexdigest()}"
    )
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    assert weights_identity("outdoor") == "outdoor"  # not downloaded
    path = PRETRAINED["outdoor"].path
    path.parent.mkdir(parents=True)
    seen = set()
    for content in (b"one", b"two"):
        path.write_bytes(content)
        seen.add(weights_identity("outdoor"))
        assert weights_identity(str(path)) in seen
        (tmp_path / "model.safetensors").write_bytes(content)
        seen.add(weights_identity(str(tmp_path)))
    assert len(seen) == 4
    assert weights_identity("sift") == "sift"
