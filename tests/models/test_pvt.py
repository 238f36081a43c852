"""The backbones: the published numbers, and all that timm can ask of a backbone."""

import argparse
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from tests.golden import GOLDEN
from tests.golden import load as recorded
from tests.golden.recipe import recipe_array, state_dict_sha256

from quadtree_attention.bench.flops import multiply_accumulates
from quadtree_attention.models import pvt
from quadtree_attention.weights import convert_published

timm = pytest.importorskip("timm")
from timm.models.pvt_v2 import MlpWithDepthwiseConv  # noqa: E402

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
    arrays, meta = recorded(name)
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
    arrays, meta = recorded("det_small")
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


TINY = {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 20, 16), "num_heads": (1, 2, 2, 2), "mlp_ratios": (2, 2, 2, 2)}


def tiny(**options):
    torch.manual_seed(0)
    return timm.create_model("quadtree_b0", **{**TINY, "num_classes": 5, **options})


@pytest.mark.parametrize(
    ("name", "giga"),
    [("quadtree_b0", 0.616), ("quadtree_b1", 2.3), ("quadtree_b2", 4.5), ("quadtree_b3", 7.8), ("quadtree_b4", 11.5)],
)
def test_multiply_accumulates(name, giga):
    """As published; b0's 0.6 is 0.616 to one figure more."""
    with torch.device("meta"):
        model = timm.create_model(name)
    count = multiply_accumulates(model, torch.empty(1, 3, 224, 224))[""]
    assert count / 1e9 == pytest.approx(giga, rel=0.02)


LOOKED_UP = """
import importlib.util, sys
import quadtree_attention.models.loftr
before = list(sys.meta_path)
assert "timm" not in sys.modules
assert importlib.util.find_spec("timm").loader.get_filename("timm").endswith("__init__.py")  # looked for, not loaded
assert sys.meta_path == before and "timm" not in sys.modules
import timm
assert len(timm.list_models("quadtree_b*")) == 5
assert timm.__loader__ is timm.__spec__.loader
assert type(timm.__loader__) is type(timm.models.__loader__) and len(sys.meta_path) == len(before) - 1
timm.create_model("quadtree_b0", depths=(1, 1, 1, 1), embed_dims=(8, 16, 20, 16), num_heads=(1, 2, 2, 2))
"""
TIMM_FIRST = """
import timm, quadtree_attention.models
assert len(timm.list_models("quadtree_b*")) == 5
"""
WITHOUT_THE_HOOK = """
import sys, quadtree_attention.models
from quadtree_attention.weights import load
sys.meta_path = [finder for finder in sys.meta_path if not type(finder).__module__.startswith("quadtree")]
load("classify_tiny", "classifier")
"""


@pytest.mark.parametrize("code", [LOOKED_UP, TIMM_FIRST, WITHOUT_THE_HOOK], ids=["looked up", "first", "without"])
def test_timm_knows_them_whichever_is_imported_first(code):
    subprocess.run([sys.executable, "-c", code], check=True)


def test_timm_lists_them():
    assert timm.list_models("quadtree_b*") == [f"quadtree_b{n}" for n in range(5)]
    cfg = timm.create_model("quadtree_b2", **TINY).default_cfg
    assert cfg["url"].endswith("QuadTreeAttention_cls/b2.pth")
    assert (cfg["architecture"], cfg["tag"], cfg["num_classes"]) == ("quadtree_b2", "in1k", 1000)


@pytest.mark.parametrize("size", [(1, 1), (33, 64), (200, 225), (64, 64)])
@pytest.mark.parametrize("variant", ["a", "b"])
def test_any_size(size, variant):
    model = tiny(variant=variant).eval()
    out, maps = (
        model.forward_head(model.forward_features(torch.randn(2, 3, *size))),
        model.forward_intermediates(torch.randn(2, 3, *size))[1],
    )
    assert out.shape == (2, 5)
    assert out.isfinite().all()
    want = [tuple(-(-side // 2**n) for side in size) for n in (2, 3, 4, 5)]
    assert [tuple(x.shape[2:]) for x in maps] == want


def test_features_only_gives_the_maps_of_forward_intermediates():
    model, images = tiny().eval(), torch.randn(1, 3, 96, 72)
    features = tiny(features_only=True, out_indices=(1, 3)).eval()
    state = {
        key.replace("stages.", "stages_"): value
        for key, value in model.state_dict().items()
        if not key.startswith("head.")
    }
    features.load_state_dict(state)
    assert features.feature_info.channels() == [16, 16]
    assert features.feature_info.reduction() == [8, 32]
    with torch.no_grad():
        for got, want in zip(
            features(images), model.forward_intermediates(images, indices=[1, 3], intermediates_only=True), strict=True
        ):
            torch.testing.assert_close(got, want)


def test_gradient_checkpointing_changes_no_gradient():
    images = torch.randn(2, 3, 64, 64)
    gradients = []
    for checkpointing in (False, True):
        model = tiny()
        model.set_grad_checkpointing(checkpointing)
        model(images).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_every_parameter_learns():
    model = tiny(in_chans=1)
    model(torch.randn(2, 1, 128, 128)).square().sum().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == ["stages.3.blocks.0.attn.level_weights"]  # the softmax of one number


def test_options_reach_the_blocks():
    model = tiny(
        topk=(8, 6, 4, 4),
        value_act="relu",
        drop_path_rate=0.2,
        proj_drop_rate=0.1,
        levels=(3, 2, 2, 1),
        backend="reference",
        depths=(1, 1, 1, 2),
    )
    attention = [block.attn for stage in model.stages for block in stage.blocks]
    assert [a.levels for a in attention] == [3, 2, 2, 1, 1]
    assert [a.topk for a in attention[:3]] == [(8, 6), (8,), (8,)]
    assert isinstance(attention[0].value_branches[0][1], torch.nn.ReLU)
    assert {a.backend for a in attention} == {"reference"}
    assert {a.proj_drop.p for a in attention} == {0.1}
    assert model.stages[3].blocks[1].drop_path1.drop_prob == pytest.approx(0.2)
    assert tiny(variant="a").stages[0].blocks[0].attn.lepe is None
    plain = tiny(value="pool", lepe=False).stages[0].blocks[0].attn
    assert plain.value_branches is None
    assert plain.lepe is None
    model.reset_classifier(7)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 7)
    model.reset_classifier(0, "")
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 16, 2, 2)


def test_weights_are_drawn_as_published():
    attention = tiny(embed_dims=(64, 64, 64, 64), num_heads=(2, 2, 2, 2)).stages[0].blocks[0].attn.requires_grad_(False)
    assert attention.q_proj.weight.std() == pytest.approx((2 / 64) ** 0.5, rel=0.05)
    assert attention.proj.weight.std() == pytest.approx(0.02, rel=0.05)
    assert attention.lepe[0].weight.std() == pytest.approx((2 / 9) ** 0.5, rel=0.1)
    assert not attention.q_proj.bias.any()


@pytest.mark.parametrize(
    ("options", "images", "message"),
    [
        ({}, (1, 4, 32, 32), r"images have shape \(1, 4, 32, 32\), expected \[B, 3, H, W\]; .*in_chans"),
        ({}, (3, 32, 32), r"expected \[B, 3, H, W\]"),
        ({}, (1, 3, 0, 32), "expected at least one image and one pixel"),
        ({}, (0, 3, 32, 32), "expected at least one image and one pixel"),
        ({"levels": (2, 2)}, None, "have 4, 4, 4 and 2 entries, expected one for each stage"),
        ({"topk": (8, 8)}, None, "topk has 2 entries, expected one number, or at least 3"),
        ({"variant": "c"}, None, "variant is 'c', expected 'a' or 'b'"),
        ({"linear": True}, None, "linear is True, expected nothing: .* use pvt_v2"),
        ({"attn_drop_rate": 0.1}, None, "attn_drop_rate is 0.1, expected 0"),
    ],
)
def test_mistakes(options, images, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options)(torch.zeros(images))


@pytest.fixture
def release(monkeypatch, tmp_path):
    """The authors' release, with a small network as its b0.pth, saved with the other things that training scripts save."""

    def download(url, path, **options):
        assert url.endswith("QuadTreeAttention_cls/b0.pth")
        torch.save({"model": small_weights("cls_small_B"), "args": argparse.Namespace(lr=1.0)}, path)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    return {**SMALL, "pretrained": True, "pretrained_cfg_overlay": {"num_classes": 10}}


def test_pretrained_downloads_and_converts(release):
    want = convert_published(small_weights("cls_small_B"))
    model = timm.create_model("quadtree_b0", **release)
    torch.testing.assert_close(model.state_dict(), want)
    assert "state_dict" not in model.pretrained_cfg
    # another number of classes and of channels, as for all of timm's models
    other = timm.create_model("quadtree_b0", **{**release, "num_classes": 3, "in_chans": 1})
    torch.testing.assert_close(other.stages.state_dict(), model.stages.state_dict())
    torch.testing.assert_close(other.patch_embed.proj.weight, model.patch_embed.proj.weight.sum(1, keepdim=True))
    features = timm.create_model("quadtree_b0", **{**release, "features_only": True})
    images = torch.randn(1, 3, 64, 64)
    for got, expected in zip(
        features.eval()(images), model.eval().forward_intermediates(images, intermediates_only=True), strict=True
    ):
        torch.testing.assert_close(got, expected)


def test_weights_of_another_network_are_refused(release, tmp_path):
    with pytest.raises(
        ValueError, match=r"weights do not fit the model: .*are they of another variant than quadtree_b0"
    ):
        timm.create_model("quadtree_b0", **{**release, "embed_dims": (16, 32, 40, 80)})
    with pytest.raises(RuntimeError, match=r"size mismatch for head\.weight"):
        timm.create_model(
            "quadtree_b0", **{**release, "num_classes": 12, "pretrained_cfg_overlay": {"num_classes": 12}}
        )


def test_a_folder_of_the_hub(tmp_path):
    """timm's own push and load, without the network."""
    from timm.models import save_for_hf

    model = tiny().eval()
    model.pretrained_cfg["num_classes"] = 5
    save_for_hf(model, tmp_path, model_args={**TINY, "num_classes": 5}, safe_serialization=True)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(again(images), model(images))


@pytest.mark.filterwarnings("ignore")  # of torch's exporter, about itself
def test_export_keeps_height_and_width_free(tmp_path):
    """torch.export, and ONNX in onnxruntime, at three sizes of which the trees pad two; two stages, since the work grows steeply with them."""
    onnxruntime = pytest.importorskip("onnxruntime")
    two = {"depths": (1, 1), "embed_dims": (8, 16), "num_heads": (1, 2), "mlp_ratios": (2, 2), "levels": (2, 1)}
    model, free = tiny(**two).eval(), torch.export.Dim.DYNAMIC
    program = torch.onnx.export(
        model, (torch.randn(1, 3, 64, 80),), dynamic_shapes={"x": {2: free, 3: free}}, dynamo=True, verbose=False
    )
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for size in ((64, 80), (200, 97), (230, 225)):
        images = torch.randn(1, 3, *size)
        with torch.no_grad():
            want = model(images)
            torch.testing.assert_close(program.exported_program.module()(images), want, rtol=0, atol=1e-5)
        (got,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        torch.testing.assert_close(torch.from_numpy(got), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(13, 9), (16, 12)])
def test_mlp_in_strips(monkeypatch, height, width):
    torch.manual_seed(0)
    mlp = MlpWithDepthwiseConv(6, 24, extra_relu=True).eval()
    x = torch.randn(2, height * width, 6)
    with torch.inference_mode():
        want = mlp(x, (height, width))
        mlp.__class__ = pvt.Mlp
        for rows in (4, 5, 7):
            monkeypatch.setattr(pvt, "WHOLE", 0)
            monkeypatch.setattr(pvt, "STRIP", rows * width * 24)
            torch.testing.assert_close(mlp(x, (height, width)), want, rtol=0, atol=1e-6)
    monkeypatch.setattr(pvt, "STRIP", 1)
    x.requires_grad_()
    torch.testing.assert_close(mlp(x, (height, width)), want, rtol=0, atol=1e-6)
    assert mlp(x, (height, width)).requires_grad
