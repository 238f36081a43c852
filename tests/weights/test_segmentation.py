"""Published segmenters: every key used, and the numbers of mmsegmentation's FPN and FPNHead by their formulas."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from quadtree_attention.data.recognition.ade20k import ADE20K_LABELS
from quadtree_attention.models.segmentation import SEGMENTER_PRESETS, SegmenterConfig, convert_segmenter
from quadtree_attention.weights import convert_published, load, read_checkpoint, save
from quadtree_attention.weights.loading import initialize
from quadtree_attention.weights.published import published_kind

KEYS = json.loads((Path(__file__).parents[1] / "golden" / "keys_detection.json").read_text())
WIDTHS = {"quadtree_b0": (32, 64, 160, 256), **{f"quadtree_b{n}": (64, 128, 320, 512) for n in range(1, 5)}}


def shapes(name, classes=150, norm="bn", neck=256, head=128):
    """Names and shapes of mmsegmentation's EncoderDecoder with FPN and FPNHead, as configured for the paper."""
    found = {f"backbone.{key}": tuple(shape) for key, (shape, _) in KEYS[name]["keys"].items()}
    for n, width in enumerate(WIDTHS[name]):
        found |= {
            f"neck.lateral_convs.{n}.conv.weight": (neck, width, 1, 1),
            f"neck.lateral_convs.{n}.conv.bias": (neck,),
            f"neck.fpn_convs.{n}.conv.weight": (neck, neck, 3, 3),
            f"neck.fpn_convs.{n}.conv.bias": (neck,),
        }
    for n, places in enumerate(
        ((0,), (0,), (0, 2), (0, 2, 4))
    ):  # after each but the first scale's: a doubling, which has a place too
        for k in places:
            key = f"decode_head.scale_heads.{n}.{k}"
            found[f"{key}.conv.weight"] = (head, head if k else neck, 3, 3)
            found |= {f"{key}.{norm}.weight": (head,), f"{key}.{norm}.bias": (head,)}
            if norm == "bn":
                found |= {f"{key}.bn.running_mean": (head,), f"{key}.bn.running_var": (head,)}
                found[f"{key}.bn.num_batches_tracked"] = ()
    return found | {"decode_head.conv_seg.weight": (classes, head, 1, 1), "decode_head.conv_seg.bias": (classes,)}


def random_state(name, **options):
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, shape in shapes(name, **options).items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(7)
        elif "running_var" in key or (key.endswith(".weight") and len(shape) == 1):
            state[key] = 0.5 + torch.rand(shape, generator=generator)
        else:
            state[key] = torch.randn(shape, generator=generator) / max(1, torch.Size(shape[1:]).numel()) ** 0.5
    return state


def mmseg(maps, state, norm="bn"):
    """Logits at 1/4, from the maps of a backbone and weights in mmsegmentation's names: its configuration's choices, written out."""
    laterals = [
        F.conv2d(x, state[f"neck.lateral_convs.{n}.conv.weight"], state[f"neck.lateral_convs.{n}.conv.bias"])
        for n, x in enumerate(maps)
    ]
    for n in (3, 2, 1):
        height, width = laterals[n - 1].shape[2:]
        rows = torch.arange(height) * laterals[n].shape[2] // height  # mode="nearest" with size
        columns = torch.arange(width) * laterals[n].shape[3] // width
        laterals[n - 1] = laterals[n - 1] + laterals[n][:, :, rows][:, :, :, columns]
    total = 0
    for n, x in enumerate(laterals):
        x = F.conv2d(x, state[f"neck.fpn_convs.{n}.conv.weight"], state[f"neck.fpn_convs.{n}.conv.bias"], padding=1)
        for k in range(max(1, n)):
            key = f"decode_head.scale_heads.{n}.{2 * k}"
            x = F.conv2d(x, state[f"{key}.conv.weight"], padding=1)
            weight, bias = (state[f"{key}.{norm}.{end}"][:, None, None] for end in ("weight", "bias"))
            if norm == "bn":
                mean, var = (state[f"{key}.bn.running_{end}"][:, None, None] for end in ("mean", "var"))
                x = (x - mean) / (var + 1e-5).sqrt() * weight + bias
            else:
                groups = x.unflatten(1, (32, -1))
                mean = groups.mean((2, 3, 4), keepdim=True)
                var = groups.var((2, 3, 4), keepdim=True, unbiased=False)
                x = ((groups - mean) / (var + 1e-5).sqrt()).flatten(1, 2) * weight + bias
            x = x.clamp(min=0)
            if n:
                x = F.interpolate(x, (2 * x.shape[2], 2 * x.shape[3]), mode="bilinear", align_corners=False)
        if n:
            x = F.interpolate(x, total.shape[2:], mode="bilinear", align_corners=False)
        total = total + x
    return F.conv2d(total, state["decode_head.conv_seg.weight"], state["decode_head.conv_seg.bias"])


@pytest.mark.parametrize("name", WIDTHS)
def test_every_published_key_has_its_place(name):
    with torch.device("meta"):
        model = SEGMENTER_PRESETS[name].build()
        state = {key: torch.empty(shape) for key, shape in shapes(name).items()}
    ours = convert_segmenter({"meta": {}, "state_dict": state})
    assert {key: x.shape for key, x in ours.items()} == {key: x.shape for key, x in model.state_dict().items()}
    assert len(ours) == len(state)
    blocks = [module for module in model.modules() if hasattr(module, "topk") and hasattr(module, "value_branches")]
    assert {k for block in blocks for k in block.topk} == {32}
    assert {type(branch[1]) for block in blocks for branch in block.value_branches} == {torch.nn.ReLU}


@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_neck_and_head_are_mmsegmentations(norm):
    state = random_state("quadtree_b0", norm=norm, classes=11)
    config = SegmenterConfig(
        "quadtree_b0",
        [str(n) for n in range(11)],
        {"topk": 32, "value_act": "relu"},
        norm={"bn": "batch", "gn": "group"}[norm],
    )
    model = config.build().eval()
    model.load_state_dict(convert_segmenter(state))
    images = torch.randn(2, 3, 100, 132)  # maps of 25x33, 13x17, 7x9, 4x5: no doubling is exact
    with torch.no_grad():
        maps = list(model.maps(images).values())
        assert [tuple(x.shape[2:]) for x in maps] == [(25, 33), (13, 17), (7, 9), (4, 5)]
        want = F.interpolate(mmseg(maps, state, norm), (100, 132), mode="bilinear", align_corners=False)
        got = model(images)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_the_backbone_is_the_published_one():
    state = random_state("quadtree_b0")
    body = convert_published({key: value for key, value in state.items() if key.startswith("backbone.")})
    ours = convert_segmenter(state)
    for key, value in body.items():
        assert ours[f"backbone.{key.replace('stages.', 'stages_')}"] is value or torch.equal(
            ours[f"backbone.{key.replace('stages.', 'stages_')}"], value
        )


def test_a_published_file(tmp_path):
    path = tmp_path / "b0.pth"
    state = random_state("quadtree_b0")
    names = [f"{name} " for name in ADE20K_LABELS]  # mmsegmentation has spaces at the end of some
    torch.save({"meta": {"CLASSES": names, "PALETTE": [[0, 0, 0]] * 150}, "state_dict": state, "optimizer": {}}, path)
    assert published_kind(read_checkpoint(path)) == "segmenter"
    model = load(path, "segmenter")
    assert model.config == SEGMENTER_PRESETS["quadtree_b0"].__class__(
        "quadtree_b0", list(ADE20K_LABELS), {"topk": 32, "value_act": "relu"}
    )
    assert torch.equal(model.head.classify.weight, state["decode_head.conv_seg.weight"])
    assert not model.training
    torch.save({"state_dict": {**state, "decode_head.fusion.weight": torch.zeros(1)}}, path)
    with pytest.raises(ValueError, match=r"b0\.pth: unknown keys: decode_head\.fusion\.weight; expected the names of"):
        load(path, "segmenter")
    torch.save({"state_dict": {key: value for key, value in state.items() if "scale_heads.3" not in key}}, path)
    with pytest.raises(ValueError, match=r"b0\.pth fits none of quadtree_b0 \.\. quadtree_b4"):
        load(path, "segmenter")


SMALL = {"depths": (1, 1, 1, 1), "embed_dims": (8, 8, 16, 16), "num_heads": (1, 1, 2, 2), "mlp_ratios": (2, 2, 2, 2)}


def small(labels=("a", "b", "c"), **options):
    return SegmenterConfig("quadtree_b0", list(labels), {**SMALL, **options}, 16, 16).build().eval()


def test_files_of_our_own(tmp_path):
    model, images = small(topk=4), torch.randn(1, 3, 40, 48)
    save(model, tmp_path / "a.safetensors")
    again = load(tmp_path / "a.safetensors", "segmenter")
    assert list(again.config.labels) == ["a", "b", "c"]
    torch.testing.assert_close(again(images), model(images))
    save(model, tmp_path / "half.safetensors", half=True)
    torch.testing.assert_close(
        load(tmp_path / "half.safetensors", "segmenter")(images), model(images), rtol=0, atol=0.02
    )
    for name, error, message in (
        ("nothing", ValueError, "unknown model 'nothing', expected one of .*semantic_fpn_quadtree_b0"),
        ("classify_tiny", ValueError, "classify_tiny is for classification, expected"),
        (tmp_path / "none.pth", FileNotFoundError, "does not exist, expected a file of weights"),
        (tmp_path, IsADirectoryError, "is a folder"),
    ):
        with pytest.raises(error, match=message):
            load(name, "segmenter")


def test_starting_from_other_weights(tmp_path):
    """Of a segmenter for other classes all but the last layer, of a classifier the backbone."""
    source, target = small(), small("abcde")
    save(source, tmp_path / "a.safetensors")
    before = target.head.classify.weight.clone()
    initialize(target, "segmenter", tmp_path / "a.safetensors")
    assert torch.equal(target.head.classify.weight, before)
    assert torch.equal(target.head.scales[3][0][0].weight, source.head.scales[3][0][0].weight)
    body = {"depths": (1, 1, 2, 1), "embed_dims": (32, 64, 128, 192), "num_heads": (1, 2, 4, 6), "mlp_ratios": (4,) * 4}
    other = SegmenterConfig("quadtree_b0", ["a", "b"], {**body, "levels": (3, 2, 1, 1)}, 16, 16).build()
    initialize(other, "segmenter", "classify_tiny")

    published = load("classify_tiny", "classifier")
    assert torch.equal(
        other.backbone["stages_2"].blocks[1].mlp.fc1.weight, published.stages[2].blocks[1].mlp.fc1.weight
    )
    with pytest.raises(ValueError, match="classify_tiny: weights do not fit the model"):
        initialize(target, "segmenter", "classify_tiny")
