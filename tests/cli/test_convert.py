import pytest
import torch

from quadtree_attention.__main__ import main
from quadtree_attention.models.classifier import ClassifierConfig
from quadtree_attention.weights import load

SMALL = {
    "depths": [1, 1, 1, 1],
    "embed_dims": [8, 8, 16, 16],
    "num_heads": [1, 1, 2, 2],
    "mlp_ratios": [2, 2, 2, 2],
}


@pytest.fixture
def classifier(tmp_path):
    """A checkpoint of our training."""
    config = ClassifierConfig("quadtree_b0", ["day", "night"], SMALL, input_size=[3, 32, 32])
    state = {f"model.{key}": value for key, value in config.build().state_dict().items()}
    torch.save({"state_dict": state, "classifier": vars(config)}, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def test_classifier(classifier, photos, tmp_path, capsys):
    assert main(["convert", str(classifier), str(tmp_path / "last.safetensors"), "--half"]) == 0
    assert "parameters" in capsys.readouterr().out
    assert main(["classify", photos[0], "--model", str(tmp_path / "last.safetensors")]) == 0
    assert {line.split()[-1] for line in capsys.readouterr().out.splitlines()} == {"day", "night"}


def test_an_architecture_is_for_published_matchers_alone(classifier, random_weights, tmp_path, capsys):
    trained = tmp_path / "matcher.ckpt"
    model = load(random_weights, "matcher")
    torch.save(
        {
            "config": vars(model.config),
            "state_dict": {f"model.{key}": value for key, value in model.state_dict().items()},
        },
        trained,
    )
    for file, message in (
        (classifier, "last.ckpt says its own; it is for published files alone"),
        (trained, "matcher.ckpt says its own; it is for published files alone"),
        (random_weights, "random.safetensors says its own"),
    ):
        assert main(["convert", str(file), str(tmp_path / "out.safetensors"), "--architecture", "indoor"]) == 2
        error = capsys.readouterr().err
        assert "architecture is 'indoor', expected none" in error
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out.safetensors").exists()
    assert main(["convert", str(trained), str(tmp_path / "out.safetensors")]) == 0
    assert load(tmp_path / "out.safetensors", "matcher").config == model.config
