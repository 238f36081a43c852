import json

import pytest
import torch

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
