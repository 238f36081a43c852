"""Configuration and weights of classifiers: files, names, and what does not fit."""

import dataclasses
import json

import pytest
import torch

from quadtree_attention.models.classifier import ClassifierConfig, build_backbone, imagenet_labels
from quadtree_attention.predict.classification import Classifier
from quadtree_attention.weights import load, read_checkpoint, save
from quadtree_attention.weights.loading import initialize
from quadtree_attention.weights.published import published_kind
from quadtree_attention.weights.registry import PRETRAINED

SMALL = {"depths": [1, 1, 1, 1], "embed_dims": [8, 8, 16, 16], "num_heads": [1, 1, 2, 2], "mlp_ratios": [2, 2, 2, 2]}
CONFIG = ClassifierConfig("quadtree_b0", ["cat", "dog", "emu"], SMALL, input_size=[1, 32, 32], mean=[0.4], std=[0.3])


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = CONFIG.build().eval()
    save(model, tmp_path / "animals.safetensors")
    return model, tmp_path / "animals.safetensors"


def test_a_file_holds_all_that_is_needed(saved, tmp_path):
    model, path = saved
    again = load(path, "classifier")
    assert again.config == CONFIG
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    save(model, tmp_path / "half.safetensors", half=True)
    assert (tmp_path / "half.safetensors").stat().st_size < path.stat().st_size
    torch.testing.assert_close(
        load(tmp_path / "half.safetensors", "classifier").state_dict(), model.state_dict(), rtol=1e-3, atol=1e-3
    )


def test_published_files(tmp_path):
    """By the widths and depths of the weights, with a head or as a detector's backbone; then for another number of classes."""
    b1 = build_backbone("quadtree_b1", num_classes=1000)
    torch.save(published(b1.state_dict()), tmp_path / "b1.pth")
    assert published_kind(read_checkpoint(tmp_path / "b1.pth")) == "classifier"
    model = load(tmp_path / "b1.pth", "classifier")
    config = model.config
    assert (config.model, len(config.labels), config.crop_pct) == ("quadtree_b1", 1000, 0.875)
    torch.testing.assert_close(model.state_dict(), b1.state_dict(), rtol=0, atol=0)
    backbone = {f"backbone.{key}": value for key, value in published(b1.state_dict()).items() if "head." not in key}
    torch.save({"state_dict": backbone | {"neck.fpn.weight": torch.zeros(1)}}, tmp_path / "retinanet.pth")
    with pytest.raises(
        ValueError, match=r"retinanet.pth is of a backbone, expected a classifier; quadtree fit takes it"
    ):
        load(tmp_path / "retinanet.pth", "classifier")
    model = load(tmp_path / "retinanet.pth", "backbone")
    config = model.config
    assert (config.model, config.labels, config.options) == ("quadtree_b1", [], {"topk": 32, "value_act": "relu"})
    with pytest.raises(ValueError, match="has no classes, expected a classifier"):
        Classifier(model)
    other = build_backbone("quadtree_b1", num_classes=4)
    initialize(other, "classifier", tmp_path / "retinanet.pth")
    torch.testing.assert_close(other.stages.state_dict(), b1.stages.state_dict())
    with pytest.raises(ValueError, match="weights do not fit the model"):
        initialize(build_backbone("quadtree_b0"), "classifier", tmp_path / "b1.pth")


def published(state):
    """Our names as the original has them: the inverse of `convert_published` for whole networks."""
    out = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] == "patch_embed":
            parts[0] = "patch_embed1"
        elif parts[0] == "stages" and parts[2] == "downsample":
            parts = [f"patch_embed{int(parts[1]) + 1}", *parts[3:]]
        elif parts[0] == "stages" and parts[2] == "norm":
            parts = [f"norm{int(parts[1]) + 1}", *parts[3:]]
        elif parts[0] == "stages":
            stage = int(parts[1])
            parts = [f"block{stage + 1}", *parts[3:]]
            if "dwconv" in parts:
                parts.insert(parts.index("dwconv"), "dwconv")
            elif "level_weights" in parts:
                parts[-1:] = ["py_att", "weight"]
            elif "lepe" in parts:
                parts[parts.index("lepe") : parts.index("lepe") + 1] = ["py_att", "get_vs"]
            elif "value_branches" in parts:
                at = parts.index("value_branches")
                parts[at : at + 2] = ["value_branchs", str(2 - stage - int(parts[at + 1]))]  # the finest first
            elif parts[-2] in ("q_proj", "k_proj", "v_proj") and value.dim() == 2:
                value = value[:, :, None, None]
        out[".".join(parts)] = value
    return out


def test_labels_of_imagenet():
    labels = imagenet_labels()
    assert len(labels) == 1000
    assert (labels[0], labels[207], labels[999]) == ("tench", "golden retriever", "toilet tissue")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("quadtree_b7", "unknown model 'quadtree_b7', expected one of .*quadtree_b0, .*, a name that timm knows"),
        ("outdoor", "outdoor is for matching, expected "),
        ("none.safetensors", "none.safetensors does not exist, expected a file of weights or one of "),
    ],
)
def test_names_that_are_none(name, message):
    with pytest.raises((ValueError, OSError), match=message):
        load(name, "classifier")


def test_files_that_do_not_fit(saved, tmp_path, random_weights):
    model, path = saved
    with pytest.raises(ValueError, match=r"is of a matcher, expected a classifier; quadtree match takes it"):
        load(random_weights, "classifier")
    with pytest.raises(ValueError, match=r"is of a classifier, expected a matcher; quadtree classify takes it"):
        load(path, "matcher")
    model.config = dataclasses.replace(CONFIG, labels=["cat", "dog"])
    save(model, tmp_path / "wrong.safetensors")
    with pytest.raises(
        ValueError, match=r"weights do not fit the model: .*head.bias has shape \(3,\), expected \(2,\)"
    ):
        load(tmp_path / "wrong.safetensors", "classifier")
    torch.save({"layer.weight": torch.zeros(2)}, tmp_path / "other.pth")
    assert published_kind(read_checkpoint(tmp_path / "other.pth")) is None
    with pytest.raises(ValueError, match=r"unknown keys: layer\.weight"):
        load(tmp_path / "other.pth", "classifier")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        load(tmp_path, "classifier")


def test_every_name_says_its_task():
    assert {row.task for row in PRETRAINED.values()} >= {"matching", "classification"}
    with pytest.raises(ValueError, match="quadtree_b0 is for classification, expected tiny, indoor, outdoor"):
        load("quadtree_b0", "matcher")


def test_config_is_what_json_can_hold():
    assert ClassifierConfig(**json.loads(json.dumps(dataclasses.asdict(CONFIG)))) == CONFIG
