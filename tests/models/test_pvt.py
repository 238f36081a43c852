"""The backbones: the published numbers, and all that timm can ask of a backbone."""

import json

import numpy as np
import pytest
import torch
from tests.golden import GOLDEN, load
from tests.golden.recipe import recipe_array, state_dict_sha256

import quadtree_attention.models  # noqa: F401 (registers)
from quadtree_attention.weights import convert_published

timm = pytest.importorskip("timm")

RUNS = [("f64", torch.float64, 1e-9), ("f32", torch.float32, 2e-5)]
SMALL = {"depths": (1, 1, 1, 1), "embed_dims": (16, 32, 40, 64), "num_classes": 10}
PUBLISHED = {name: json.loads((GOLDEN / f"keys_{name}.json").read_text()) for name in ("classification", "detection")}


def near(got, want, atol):
    want = torch.from_numpy(want)
    torch.testing.assert_close(got.to(want.dtype), want, rtol=0, atol=atol)


def stages(model, images):
    """Normed maps of the four stages as tokens, and what comes after them."""
    final, maps = model.forward_intermediates(images)
    return [x.flatten(2).transpose(1, 2) for x in maps], model.forward_head(final)


def small_weights(name):
    return {
        key: torch.from_numpy(value) for key, value in np.load(GOLDEN / f"{name}_weights.npz").items() if key != "meta"
    }


def recipe_weights(name, seed, classes):
    shapes = {
        key: (*([classes] if key.startswith("head.") else shape[:1]), *shape[1:])
        for key, (shape, _) in PUBLISHED["classification"][name]["keys"].items()
    }
    return {key: recipe_array(key, shape, seed) for key, shape in shapes.items()}


@pytest.mark.parametrize("name", ["cls_small_B", "cls_b0_recipe"])
def test_classification_numbers(name):
    arrays, meta = load(name)
    if name == "cls_small_B":
        model, weights = timm.create_model("quadtree_b0", **SMALL), small_weights(name)
        strides = {"f32": (1, 1, 1, 1), "f64": (4, 4, 1, 1)}
    else:
        model, weights = (
            timm.create_model("quadtree_b0", num_classes=10),
            recipe_weights("quadtree_b0", meta["seed"], 10),
        )
        assert state_dict_sha256(weights) == meta["weights_sha256"]
        weights = {key: torch.from_numpy(value) for key, value in weights.items()}
        strides = {"f32": (7,) * 4, "f64": (7,) * 4}
    assert sum(p.numel() for p in model.parameters()) == meta["n_params"]
    model.load_state_dict(convert_published(weights))
    model.eval()
    for run, dtype, atol in RUNS:
        with torch.no_grad():
            tokens, logits = stages(model.to(dtype), torch.from_numpy(arrays["in.x"]).to(dtype))
        for n, (stage, stride) in enumerate(zip(tokens, strides[run], strict=True), 1):
            near(stage[:, ::stride], arrays[f"{run}.stage{n}"], atol)
        near(logits, arrays[f"{run}.logits"], atol)


def test_detection_numbers():
    arrays, meta = load("det_small")
    model = timm.create_model("quadtree_b0", topk=32, value_act="relu", **{**SMALL, "num_classes": 0})
    assert sum(p.numel() for p in model.parameters()) == meta["n_params"]
    detector = {f"backbone.{key}": value for key, value in small_weights("det_small").items()}
    model.load_state_dict(
        convert_published({"state_dict": {**detector, "bbox_head.retina_cls.weight": torch.zeros(1)}})
    )
    for run, dtype, atol in RUNS:
        with torch.no_grad():
            maps = model.to(dtype).forward_intermediates(
                torch.from_numpy(arrays["in.x"]).to(dtype), intermediates_only=True
            )
        for n, x in enumerate(maps):
            near(x[:, ::8] if run == "f64" and n < 2 else x, arrays[f"{run}.out{n}"], atol)


@pytest.mark.parametrize("task", ["classification", "detection"])
@pytest.mark.parametrize("name", [*(f"quadtree_b{n}" for n in range(5)), "quadtreeA_b0"])
def test_every_published_key_has_its_place(task, name):
    if name not in PUBLISHED[task]:
        pytest.skip("not published")
    published = PUBLISHED[task][name]
    with torch.device("meta"):
        model = timm.create_model(
            name.replace("A_", "_"),
            variant="a" if "A" in name else "b",
            num_classes=1000 if task == "classification" else 0,
        )
        state = {key: torch.empty(shape) for key, (shape, _) in published["keys"].items()}
    ours = convert_published(state)
    assert {key: value.shape for key, value in model.state_dict().items()} == {
        key: value.shape for key, value in ours.items()
    }
    assert len(ours) == len(state)
    assert sum(p.numel() for p in model.parameters()) == published["n_params"]
