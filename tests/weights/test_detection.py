"""Published detectors: every key has its place, and the network computes what mmdetection's formulas give for the published names."""

import json
import math

import numpy as np
import pytest
import torch
from tests.golden import GOLDEN
from tests.golden import load as recorded
from tests.models.detection import formulas
from tests.models.detection.formulas import layer, per_anchor, relu, sigmoid

from quadtree_attention.models.checkpoint import misfit
from quadtree_attention.models.classifier import build_backbone
from quadtree_attention.models.detection import DetectorConfig, build_detector, coco_detector_config
from quadtree_attention.models.detection.keys import convert_detector
from quadtree_attention.weights import load, read_checkpoint, save
from quadtree_attention.weights.loading import initialize
from quadtree_attention.weights.published import published_kind
from quadtree_attention.weights.registry import PRETRAINED

BACKBONES = json.loads((GOLDEN / "keys_detection.json").read_text())
WIDTHS = {"quadtree_b0": (32, 64, 160, 256), **{f"quadtree_b{n}": (64, 128, 320, 512) for n in range(1, 5)}}


def heads(kind, widths, channels=256, classes=80, features=1024):
    """Shapes by mmdetection's names of all that comes after the backbone."""

    def conv(name, out, inside, side):
        return {f"{name}.weight": (out, inside, side, side), f"{name}.bias": (out,)}

    shapes = {}
    for n, width in enumerate(widths[1:] if kind == "retinanet" else widths):
        shapes |= conv(f"neck.lateral_convs.{n}.conv", channels, width, 1)
        shapes |= conv(f"neck.fpn_convs.{n}.conv", channels, channels, 3)
    if kind == "retinanet":
        shapes |= conv("neck.fpn_convs.3.conv", channels, widths[-1], 3)
        shapes |= conv("neck.fpn_convs.4.conv", channels, channels, 3)
        for n in range(4):
            shapes |= conv(f"bbox_head.cls_convs.{n}.conv", channels, channels, 3)
            shapes |= conv(f"bbox_head.reg_convs.{n}.conv", channels, channels, 3)
        return (
            shapes
            | conv("bbox_head.retina_cls", 9 * classes, channels, 3)
            | conv("bbox_head.retina_reg", 36, channels, 3)
        )
    shapes |= conv("rpn_head.rpn_conv", channels, channels, 3)
    shapes |= conv("rpn_head.rpn_cls", 3, channels, 1) | conv("rpn_head.rpn_reg", 12, channels, 1)
    for name, out, inside in (
        ("shared_fcs.0", features, channels * 49),
        ("shared_fcs.1", features, features),
        ("fc_cls", classes + 1, features),
        ("fc_reg", classes * 4, features),
    ):
        shapes |= {f"roi_head.bbox_head.{name}.weight": (out, inside), f"roi_head.bbox_head.{name}.bias": (out,)}
    for n in range(4):
        shapes |= conv(f"roi_head.mask_head.convs.{n}.conv", channels, channels, 3)
    up = {
        "roi_head.mask_head.upsample.weight": (channels, channels, 2, 2),
        "roi_head.mask_head.upsample.bias": (channels,),
    }
    return shapes | up | conv("roi_head.mask_head.conv_logits", classes, channels, 1)


def published(kind, name):
    """A state_dict of meta tensors with all names and shapes of a published checkpoint."""
    body = {f"backbone.{key}": shape for key, (shape, _) in BACKBONES[name]["keys"].items()}
    with torch.device("meta"):
        return {key: torch.empty(shape) for key, shape in (body | heads(kind, WIDTHS[name])).items()}


@pytest.mark.parametrize("name", WIDTHS)
@pytest.mark.parametrize("kind", ["retinanet", "mask_rcnn"])
def test_every_published_key_has_its_place(kind, name):
    state = published(kind, name)
    found, ours = convert_detector({"meta": {}, "state_dict": state})
    assert found == kind
    assert len(ours) == len(state)
    with torch.device("meta"):
        model = build_detector(coco_detector_config(f"{kind}_{name}"))
    assert misfit(model.state_dict(), ours) == ""
    learnt = sum(p.numel() for p in model.parameters())
    background = 0 if kind == "retinanet" else 4 * 1025 + 257
    assert learnt == sum(value.numel() for value in state.values()) + background
    row = PRETRAINED[f"{kind}_{name}" + ("_1x" if kind == "mask_rcnn" else "")]
    assert row.megabytes == pytest.approx(4e-6 * (learnt - background), rel=0.01)
    assert row.url.endswith(
        f"QuadTreeAttention_{'maskrcnn/' + name[-2:] + '_1x' if kind == 'mask_rcnn' else 'detection/' + name[-2:]}.pth"
    )


SMALL = {"depths": [1, 1, 1, 1], "embed_dims": [16, 32, 40, 64], "topk": 32, "value_act": "relu"}


@pytest.fixture(scope="module")
def backbone():
    """The recorded small backbone: its published weights, an image, and its four maps in float64."""
    arrays, _ = recorded("det_small")
    weights = {
        f"backbone.{key}": torch.from_numpy(value).double()
        for key, value in np.load(GOLDEN / "det_small_weights.npz").items()
        if key != "meta"
    }
    return weights, torch.from_numpy(arrays["in.x"]).double()


def random_heads(kind, classes, channels, features):
    random = np.random.default_rng(0)
    shapes = heads(kind, SMALL["embed_dims"], channels, classes, features)
    return {
        key: torch.from_numpy(random.normal(0, 1 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.3, shape))
        for key, shape in shapes.items()
    }


def loaded(kind, weights, **changes):
    """The network with published weights, its preparation of images left out: they come as the backbone wants them."""
    plain = {"mean": [0.0] * 3, "std": [1.0] * 3}
    config = DetectorConfig(
        kind, "quadtree_b0", ["a", "b", "c"], options=SMALL, channels=8, features=12, **{**plain, **changes}
    )
    model = build_detector(config).double()
    found, state = convert_detector(weights)
    assert found == kind
    model.load_state_dict(state, strict=True)
    return model.eval()


def test_retinanet_finds_what_the_formulas_give(backbone):
    body, images = backbone
    weights = random_heads("retinanet", 3, 8, 12)
    weights["bbox_head.retina_cls.bias"] -= 2.5
    height, width = images.shape[2:]
    model = loaded("retinanet", body | weights, min_size=min(height, width), max_size=max(height, width), candidates=60)
    with torch.no_grad():
        maps = [one[0].numpy() for one in model.backbone.body(images[:1])]
        pyramid = [one[0].numpy() for one in model.backbone(images[:1]).values()]
        found = model([images[0]])[0]
    state = {key: value.numpy() for key, value in weights.items()}
    levels = formulas.neck(state, maps[1:], "on_input")
    for got, want in zip(pyramid, levels, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-9)
    rows = []
    for level, stride in zip(levels, (8, 16, 32, 64, 128), strict=True):
        x, y = level, level
        for n in range(4):
            x = relu(layer(state, f"bbox_head.cls_convs.{n}.conv", x))
            y = relu(layer(state, f"bbox_head.reg_convs.{n}.conv", y))
        scores = sigmoid(per_anchor(layer(state, "bbox_head.retina_cls", x), 3))
        deltas = per_anchor(layer(state, "bbox_head.retina_reg", y), 4)
        boxes = formulas.anchors(level.shape[1:], stride, [4 * stride * 2 ** (n / 3) for n in range(3)])
        for n in np.argsort(-scores.max(1), kind="stable")[:60]:
            box = formulas.decode(boxes[n], deltas[n], (1, 1, 1, 1), (height, width))
            rows += [(scores[n, c], c, box) for c in range(3) if scores[n, c] > 0.05]
    want = formulas.suppress(rows, 0.5)[:100]
    assert len(found["boxes"]) == len(want) > 20
    assert len(rows) > len(want)
    np.testing.assert_allclose(found["scores"].numpy(), [row[0] for row in want], rtol=1e-5)
    assert found["labels"].tolist() == [row[1] for row in want]
    np.testing.assert_allclose(found["boxes"].numpy(), np.array([row[2] for row in want]), atol=1e-2)


def test_mask_rcnn_finds_what_the_formulas_give(backbone):
    body, images = backbone
    weights = random_heads("mask_rcnn", 3, 8, 12)
    for name, factor in (("fc_cls.weight", 6.0), ("fc_reg.weight", 3.0)):
        weights[f"roi_head.bbox_head.{name}"] *= factor
    weights["roi_head.mask_head.conv_logits.weight"] *= 10
    height, width = images.shape[2:]
    model = loaded(
        "mask_rcnn",
        body | weights,
        min_size=min(height, width),
        max_size=max(height, width),
        candidates=12,
        max_detections=5,
    )
    with torch.no_grad():
        maps = [one[0].numpy() for one in model.backbone.body(images[:1])]
        found = model([images[0]])[0]
    state = {key: value.numpy() for key, value in weights.items()}
    levels = formulas.neck(state, maps, "pool")

    proposals = []
    for number, (level, stride) in enumerate(zip(levels, (4, 8, 16, 32, 64), strict=True)):
        x = relu(layer(state, "rpn_head.rpn_conv", level))
        scores = per_anchor(layer(state, "rpn_head.rpn_cls", x), 1)[:, 0]
        deltas = per_anchor(layer(state, "rpn_head.rpn_reg", x), 4)
        boxes = formulas.anchors(level.shape[1:], stride, [8 * stride])
        for n in np.argsort(-scores, kind="stable")[:12]:
            box = formulas.decode(boxes[n], deltas[n], (1, 1, 1, 1), (height, width))
            proposals.append((sigmoid(scores[n]), number, box))
    proposals = [row[2] for row in formulas.suppress(proposals, 0.7)[:12]]

    strides, rows = (4, 8, 16, 32), []
    box_head = "roi_head.bbox_head"
    for box in proposals:
        x = formulas.roi_align(levels[:4], strides, box, 7).reshape(-1)
        for n in range(2):
            x = relu(state[f"{box_head}.shared_fcs.{n}.weight"] @ x + state[f"{box_head}.shared_fcs.{n}.bias"])
        logits = state[f"{box_head}.fc_cls.weight"] @ x + state[f"{box_head}.fc_cls.bias"]
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()  # the last is the background's
        deltas = (state[f"{box_head}.fc_reg.weight"] @ x + state[f"{box_head}.fc_reg.bias"]).reshape(3, 4)
        for c in range(3):
            if shares[c] > 0.05:
                rows.append((shares[c], c, formulas.decode(box, deltas[c], (0.1, 0.1, 0.2, 0.2), (height, width))))
    want = formulas.suppress(rows, 0.5)[:5]
    assert len(found["boxes"]) == len(want) == 5
    np.testing.assert_allclose(found["scores"].numpy(), [row[0] for row in want], rtol=1e-5)
    assert found["labels"].tolist() == [row[1] for row in want]
    np.testing.assert_allclose(found["boxes"].numpy(), np.array([row[2] for row in want]), atol=1e-2)

    for n, (_, label, box) in enumerate(want[:2]):
        x = formulas.roi_align(levels[:4], strides, box, 14)
        for place in range(4):
            x = relu(layer(state, f"roi_head.mask_head.convs.{place}.conv", x))
        weight, bias = (state[f"roi_head.mask_head.upsample.{end}"] for end in ("weight", "bias"))
        up = np.einsum("chw,cojk->ohjwk", x, weight).reshape(8, 28, 28) + bias[:, None, None]
        mask = sigmoid(layer(state, "roi_head.mask_head.conv_logits", relu(up))[label])
        wrong = (found["masks"][n].numpy() != formulas.paste(mask, box, (height, width))).mean()
        assert wrong < 1e-3  # the box is rounded to float32 on its way


def test_a_published_file_is_told_from_its_weights(tmp_path, monkeypatch):
    monkeypatch.setattr("quadtree_attention.weights.published.BACKBONES", ("quadtree_b1", "quadtree_b0"))
    state = {key: torch.zeros(value.shape) for key, value in published("retinanet", "quadtree_b0").items()}
    torch.save({"meta": {"epoch": 12}, "state_dict": state, "optimizer": {}}, tmp_path / "b0.pth")
    assert published_kind(read_checkpoint(tmp_path / "b0.pth")) == "detector"
    model = load(tmp_path / "b0.pth", "detector")
    config = model.config
    assert (config.detector, config.backbone, len(config.labels), config.ids[-1]) == (
        "retinanet",
        "quadtree_b0",
        80,
        90,
    )
    assert config.options == {"topk": 32, "value_act": "relu", "drop_path_rate": 0.1}
    assert not model.training
    save(model, tmp_path / "b0.safetensors")
    again = load(tmp_path / "b0.safetensors", "detector")
    assert again.config.ids == config.ids
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    state["bbox_head.atss_centerness.weight"] = torch.zeros(1)
    with pytest.raises(
        ValueError,
        match=r"unknown keys: bbox_head\.atss_centerness\.weight; expected the names of mmdetection's retinanet",
    ):
        convert_detector(state)
    del state["bbox_head.atss_centerness.weight"], state["neck.fpn_convs.4.conv.bias"]
    torch.save(state, tmp_path / "less.pth")
    with pytest.raises(
        ValueError,
        match=r"less\.pth is a retinanet of mmdetection's that fits none of the backbones quadtree_b1, quadtree_b0",
    ):
        load(tmp_path / "less.pth", "detector")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("quadtree_b0", "quadtree_b0 is for classification, expected tiny, detect_tiny, retinanet_quadtree_b0"),
        ("nonsense", "unknown model 'nonsense', expected one of tiny, detect_tiny"),
        ("none.pth", "none.pth does not exist"),
        (".", "is a folder"),
    ],
)
def test_what_cannot_be_loaded(name, message):
    with pytest.raises((ValueError, OSError), match=message):
        load(name, "detector")


@pytest.mark.parametrize("name", ["pvt_v2_b0", "resnet18"])
def test_backbones_of_others(name):
    """PVTv2 and ResNets of mmdetection's; and any classifier of timm's as a start."""
    torch.manual_seed(0)
    full = build_backbone(name, num_classes=3)
    config = DetectorConfig("retinanet", name, ["a"], channels=8, frozen_norm=name == "resnet18")
    model = build_detector(config)
    widths = model.backbone.body.feature_info.channels()[-4:]
    body = {
        key: value
        for key, value in full.state_dict().items()
        if not key.startswith(("head", "fc")) and (name != "resnet18" or "num_b" not in key)
    }
    if name == "pvt_v2_b0":
        body = {_as_published(key): value for key, value in body.items()}
    state = {f"backbone.{key}": value for key, value in body.items()} | {
        key: torch.zeros(shape) for key, shape in heads("retinanet", widths, 8, 1).items()
    }
    kind, ours = convert_detector(state)
    assert kind == "retinanet"
    model.load_state_dict(ours, strict=True)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        want = full.eval().forward_intermediates(images, intermediates_only=True)[-1]
        torch.testing.assert_close(model.eval().backbone.body(images)[-1], want)


def _as_published(key):
    """timm's names of PVTv2 as the PVT repository has them."""
    import re

    if key.startswith("patch_embed."):
        return key.replace("patch_embed.", "patch_embed1.")
    number = int(key.split(".")[1]) + 1
    key = re.sub(r"^stages\.\d+\.downsample\.", f"patch_embed{number}.", key)
    key = re.sub(r"^stages\.\d+\.blocks\.", f"block{number}.", key)
    key = re.sub(r"^stages\.\d+\.norm\.", f"norm{number}.", key)
    return key.replace("mlp.dwconv.", "mlp.dwconv.dwconv.")


def test_a_classifier_starts_a_backbone(tmp_path):
    from quadtree_attention.models.classifier import ClassifierConfig

    options = {
        "depths": [1, 1, 1, 1],
        "embed_dims": [8, 8, 16, 16],
        "num_heads": [1, 1, 2, 2],
        "mlp_ratios": [2, 2, 2, 2],
    }
    classifier = ClassifierConfig("quadtree_b0", ["a", "b"], options)
    network = classifier.build()
    save(network, tmp_path / "c.safetensors")
    model = build_detector(DetectorConfig("retinanet", "quadtree_b0", ["x"], options=options, channels=8))
    initialize(model, "detector", tmp_path / "c.safetensors")
    weight = model.backbone.body.state_dict()["stages_2.blocks.0.mlp.fc1.weight"]
    assert torch.equal(weight, network.stages[2].blocks[0].mlp.fc1.weight)
    deeper = build_detector(
        DetectorConfig("retinanet", "quadtree_b0", ["x"], options={**options, "depths": [1, 1, 2, 1]}, channels=8)
    )
    with pytest.raises(ValueError, match=r"c\.safetensors: weights do not fit the model: \d+ missing"):
        initialize(deeper, "detector", tmp_path / "c.safetensors")
