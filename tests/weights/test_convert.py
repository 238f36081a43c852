import dataclasses
import json
from pathlib import Path

import pytest
import torch

from quadtree_attention.models.loftr import LOFTR_PRESETS, LoFTR, LoFTRConfig
from quadtree_attention.models.loftr.transformer import coarse_transformer
from quadtree_attention.nn import QuadtreeAttention
from quadtree_attention.weights import convert_published, load

KEYS = json.loads((Path(__file__).parents[1] / "golden" / "keys_loftr.json").read_text())


def empty(shapes):
    """A state_dict of the given shapes; every tensor holds other numbers."""
    return {
        key: torch.full(shape, float(index), dtype=kind) for index, (key, (shape, kind)) in enumerate(shapes.items())
    }


def published(name="outdoor"):
    return empty({key: (shape, getattr(torch, kind)) for key, (shape, kind) in KEYS[name]["keys"].items()})


def attention_keys(dim=8, levels=3, bias=True, prefix=""):
    shapes = {}
    for name in ("q_proj", "k_proj", "v_proj"):
        shapes[f"{name}.weight"] = (dim, dim, 1, 1)
        if bias:
            shapes[f"{name}.bias"] = (dim,)
    shapes |= {"proj.weight": (dim, dim), "proj.bias": (dim,), "py_att.weight": (levels,)}
    for level in range(levels):
        shapes |= {f"py_att.get_vs.{level}.weight": (dim, 1, 3, 3), f"py_att.get_vs.{level}.bias": (dim,)}
    for branch in range(levels - 1):
        parts = {"0": (dim,), "2": (dim, dim, 2, 2), "3": (dim,), "5": (dim, dim, 1, 1)}
        for place, shape in parts.items():
            shapes |= {f"value_branchs.{branch}.{place}.weight": shape, f"value_branchs.{branch}.{place}.bias": (dim,)}
    return {prefix + key: (shape, torch.float32) for key, shape in shapes.items()}


@pytest.mark.parametrize("name", ["indoor", "outdoor"])
def test_every_published_key_has_its_place(name):
    state = published(name)
    before = dict(state)
    converted = convert_published(state)
    model = LoFTR(LOFTR_PRESETS[name])
    model.load_state_dict(converted, strict=True)
    assert len(converted) == len(state) == 259
    assert sum(tensor.numel() for tensor in converted.values()) == KEYS[name]["n_state"]
    assert state.keys() == before.keys()
    assert all(state[key] is before[key] for key in before)
    assert state["loftr_coarse.layers.0.attn.q_proj.weight"].shape == (256, 256, 1, 1)
    # No two keys changed places: each holds its own number.
    numbers = {tensor.flatten()[0].item() for tensor in converted.values()}
    assert len(numbers) == 259
    pairs = {
        "backbone.layer2_outconv2.3.weight": "backbone.smooth2.3.weight",
        "backbone.layer1_outconv.weight": "backbone.lateral1.weight",
        "loftr_coarse.layers.5.attn.py_att.weight": "coarse.layers.5.attn.level_weights",
        "loftr_coarse.layers.7.mlp.dwconv.dwconv.bias": "coarse.layers.7.mlp.dwconv.bias",
        "fine_preprocess.merge_feat.bias": "windows.merge.bias",
        "loftr_fine.layers.1.merge.weight": "fine.layers.1.attn.proj.weight",
        "loftr_fine.layers.1.v_proj.weight": "fine.layers.1.attn.v_proj.weight",
    }
    for theirs, ours in pairs.items():
        assert torch.equal(converted[ours], state[theirs])


def test_lightning_checkpoint():
    inner = {f"matcher.{key}": value for key, value in published().items()}
    converted = convert_published({"epoch": 29, "state_dict": inner, "callbacks": object()})
    assert converted.keys() == convert_published(published()).keys()
    assert all(key.startswith("matcher.") for key in inner)


def test_loftrs_own_linear_attention():
    state = {key: value for key, value in published().items() if not key.startswith("loftr_coarse.")}
    shapes = {}
    for layer in range(8):
        for name in ("q_proj", "k_proj", "v_proj", "merge"):
            shapes[f"loftr_coarse.layers.{layer}.{name}.weight"] = (256, 256)
        shapes[f"loftr_coarse.layers.{layer}.mlp.0.weight"] = (512, 512)
        shapes[f"loftr_coarse.layers.{layer}.mlp.2.weight"] = (256, 512)
        for norm in ("norm1", "norm2"):
            shapes |= {f"loftr_coarse.layers.{layer}.{norm}.{end}": (256,) for end in ("weight", "bias")}
    state |= empty({key: (shape, torch.float32) for key, shape in shapes.items()})
    converted = convert_published(state | {"pos_encoding.pe": torch.zeros(1, 256, 256, 256)})
    LoFTR(LoFTRConfig(attention="linear", block="loftr")).load_state_dict(converted, strict=True)
    assert len(converted) == len(state)


def test_transformer_alone():
    state = {k.removeprefix("loftr_coarse."): v for k, v in published().items() if k.startswith("loftr_coarse.")}
    coarse_transformer(LOFTR_PRESETS["outdoor"]).load_state_dict(convert_published(state), strict=True)


@pytest.mark.parametrize("bias", [True, False])
def test_single_attention_module(bias):
    state = empty(attention_keys(bias=bias))
    converted = convert_published(state)
    module = QuadtreeAttention(8, 2, levels=3, value="conv", lepe=True, qkv_bias=bias)
    module.load_state_dict(converted, strict=True)
    assert torch.equal(converted["q_proj.weight"], state["q_proj.weight"][:, :, 0, 0])
    # Levels of LePE are coarse to fine in both; value branches are finest first in the published list.
    assert torch.equal(converted["lepe.0.weight"], state["py_att.get_vs.0.weight"])
    assert torch.equal(converted["value_branches.0.2.weight"], state["value_branchs.1.2.weight"])
    assert torch.equal(converted["value_branches.1.5.bias"], state["value_branchs.0.5.bias"])


def test_variant_a_has_no_level_weights():
    keys = {
        key: value
        for key, value in attention_keys().items()
        if key.split(".")[0] in ("q_proj", "k_proj", "v_proj", "proj")
    }
    QuadtreeAttention(8, 2, variant="a").load_state_dict(convert_published(empty(keys)), strict=True)


def test_operator_alone():
    state = empty({k.removeprefix("py_att."): v for k, v in attention_keys().items() if k.startswith("py_att.")})
    converted = convert_published(state)
    missing, unexpected = QuadtreeAttention(8, 2, lepe=True).load_state_dict(converted, strict=False)
    assert not unexpected
    assert {key.split(".")[0] for key in missing} == {"q_proj", "k_proj", "v_proj", "proj"}


def test_unknown_keys_are_named():
    state = published()
    state["backbone.layer4.0.conv1.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"unknown keys: backbone\.layer4\.0\.conv1\.weight;") as error:
        convert_published(state)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="and 3 more"):
        convert_published({f"head.{index}": torch.zeros(1) for index in range(8)})


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "no weights"),
        ({"state_dict": {}}, "no weights"),
        ({"state_dict": [1]}, "no weights"),
        ({"q_proj.weight": 3}, "holds a int"),
        ({"weight": torch.zeros(3), "matcher.weight": torch.zeros(3)}, "with and without"),
    ],
)
def test_what_is_not_a_state_dict(state, message):
    with pytest.raises(ValueError, match=message):
        convert_published(state)


def test_optimal_transport_is_told_from_its_score(tmp_path):
    path = tmp_path / "outdoor_ot.ckpt"
    torch.save({"state_dict": {**published(), "matcher.coarse_matching.bin_score": torch.tensor(2.5)}}, path)
    model = load(path, "matcher")
    assert model.config == dataclasses.replace(LOFTR_PRESETS["outdoor"], matching="optimal_transport")
    assert model.bin_score == 2.5
