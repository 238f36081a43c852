import torch

from quadtree_attention.__main__ import main
from quadtree_attention.models.classifier import ClassifierConfig


def test_convert_classifier(tmp_path, photos, capsys):
    small = {
        "depths": [1, 1, 1, 1],
        "embed_dims": [8, 8, 16, 16],
        "num_heads": [1, 1, 2, 2],
        "mlp_ratios": [2, 2, 2, 2],
    }
    config = ClassifierConfig("quadtree_b0", ["day", "night"], small, input_size=[3, 32, 32])
    state = {f"model.{key}": value for key, value in config.build().state_dict().items()}
    torch.save({"state_dict": state, "classifier": vars(config)}, tmp_path / "last.ckpt")
    assert main(["convert", str(tmp_path / "last.ckpt"), str(tmp_path / "last.safetensors"), "--half"]) == 0
    assert "parameters" in capsys.readouterr().out
    assert main(["classify", photos[0], "--model", str(tmp_path / "last.safetensors")]) == 0
    assert {line.split()[-1] for line in capsys.readouterr().out.splitlines()} == {"day", "night"}
