"""The format of files, and files written before it had kinds."""

import json

import pytest
import torch
from safetensors.torch import save as safetensors_bytes

from quadtree_attention.models.classifier import ClassifierConfig
from quadtree_attention.models.detection import DetectorConfig, build_detector
from quadtree_attention.models.loftr import LOFTR_PRESETS, LoFTR
from quadtree_attention.models.sttr import STTR, STTR_PRESETS
from quadtree_attention.weights import load, save
from quadtree_attention.weights.files import ENTRY, VERSION, description, read, read_metadata

SMALL = {"depths": [1, 1, 1, 1], "embed_dims": [8, 8, 16, 16], "num_heads": [1, 1, 2, 2], "mlp_ratios": [2, 2, 2, 2]}


def networks():
    """Kind, network, and what version 1 had as class, as place of the configuration, and beside it in a checkpoint."""
    return [
        ("matcher", LoFTR(LOFTR_PRESETS["tiny"]), "LoFTR", None, {}),
        ("stereo", STTR(STTR_PRESETS["tiny"]), "STTR", None, {"model": "STTR"}),
        (
            "classifier",
            ClassifierConfig("quadtree_b0", ["a", "b"], SMALL).build(),
            "QuadtreeTransformer",
            "classifier",
            {},
        ),
        ("backbone", ClassifierConfig("quadtree_b0", [], SMALL).build(), "QuadtreeTransformer", "classifier", {}),
        (
            "detector",
            build_detector(DetectorConfig("retinanet", "quadtree_b0", ["a"], options=SMALL, channels=8)),
            "RetinaNet",
            "detector",
            {},
        ),
    ]


def same(found, model):
    return json.dumps(description(found.config)) == json.dumps(description(model.config)) and all(
        torch.equal(a, b) for a, b in zip(found.state_dict().values(), model.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("case", networks(), ids=lambda case: case[0])
def test_files_say_what_they_are_and_older_ones_are_read(case, tmp_path):
    kind, model, name, place, beside = case
    path = tmp_path / "new.safetensors"
    save(model, path)
    metadata = read_metadata(path)
    assert (metadata["kind"], metadata["version"]) == (kind, str(VERSION))
    assert read(path).kind == kind
    for wanted in (kind, None):
        assert same(load(path, wanted), model)

    config = description(model.config)["config"]
    old = {"format": "pt", "model": name, "config": json.dumps({place: config} if place else config)}
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    (tmp_path / "old.safetensors").write_bytes(safetensors_bytes(state, old))
    assert same(load(tmp_path / "old.safetensors", kind), model)

    trained = {"state_dict": {f"model.{key}": value for key, value in state.items()}, "epoch": 3}
    torch.save({**trained, ENTRY: description(model.config)}, tmp_path / "new.ckpt")
    torch.save({**trained, place or "config": config, **beside}, tmp_path / "old.ckpt")
    for file in ("new.ckpt", "old.ckpt"):
        assert same(load(tmp_path / file, kind), model)
        assert read(tmp_path / file).kind == kind


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "3"}, "was written by a later version of quadtree-attention; update the package"),
        ({"version": "-1"}, "has a damaged version in its metadata: '-1', expected a number"),
        (
            {"kind": "poem"},
            "is of kind 'poem', expected one of matcher, stereo, classifier, detector, segmenter, backbone",
        ),
    ],
)
def test_files_of_other_versions_and_kinds(changes, message, tmp_path):
    metadata = {"format": "pt", "kind": "matcher", "version": str(VERSION), "config": "{}"} | changes
    (tmp_path / "a.safetensors").write_bytes(safetensors_bytes({"a": torch.zeros(1)}, metadata))
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "a.safetensors", "matcher")
