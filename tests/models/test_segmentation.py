import pytest
import torch

from quadtree_attention.models.segmentation import SEGMENTER_PRESETS, SegmenterConfig, semantic_fpn

SMALL = {"depths": (1, 1, 1, 1), "embed_dims": (8, 8, 16, 16), "num_heads": (1, 1, 2, 2), "mlp_ratios": (2, 2, 2, 2)}


def small(backbone="quadtree_b0", options=SMALL, **changes):
    torch.manual_seed(0)
    return SegmenterConfig(backbone, ["a", "b", "c"], options, 16, 16, **changes).build()


@pytest.mark.parametrize("size", [(1, 1), (33, 64), (100, 37), (96, 96)])
def test_any_size(size):
    logits = small().eval()(torch.randn(2, 3, *size))
    assert logits.shape == (2, 3, *size)
    assert logits.isfinite().all()


def test_images_of_different_sizes_are_as_if_alone():
    model = small().eval()
    images = [torch.randn(3, *size) for size in ((40, 52), (64, 33), (40, 52), (17, 20))]
    with torch.no_grad():
        found = model(images)
        for image, logits in zip(images, found, strict=True):
            torch.testing.assert_close(logits, model(image[None])[0], rtol=1e-5, atol=1e-5)
        assert model([]) == []


@pytest.mark.parametrize("backbone", ["pvt_v2_b0", "resnet18", "convnext_atto", "mambaout_femto"])
def test_other_backbones(backbone):
    """With maps at 1/2 too (ResNet), and with channels last (MambaOut)."""
    model = SegmenterConfig(backbone, ["a", "b"], {}, 16, 16).build().eval()
    with torch.no_grad():
        maps = model.maps(torch.randn(1, 3, 64, 96))
        assert [tuple(x.shape[2:]) for x in maps.values()] == [(16, 24), (8, 12), (4, 6), (2, 3)]
        assert model(torch.randn(1, 3, 64, 96)).shape == (1, 2, 64, 96)


def test_every_parameter_learns():
    model = small(norm="batch").train()
    torch.nn.init.normal_(model.head.classify.weight)
    model(torch.randn(2, 3, 128, 128)).square().sum().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == ["backbone.stages_3.blocks.0.attn.level_weights"]  # the softmax of one number


def test_presets():
    assert {"quadtree_b0", "quadtree_b4", "pvt_v2_b2", "resnet101", "resnext101_32x4d"} <= SEGMENTER_PRESETS.keys()
    for name, config in SEGMENTER_PRESETS.items():
        assert config.backbone == name
        assert len(config.labels) == 150
        assert (config.neck_channels, config.head_channels, config.norm, config.dropout) == (256, 128, "batch", 0.1)
        assert ("topk" in config.options) == name.startswith("quadtree")
    assert semantic_fpn("quadtree_b1", ["a"], topk=8).options == {"topk": 8, "value_act": "relu"}


def mmcv_sizes(height, width, long_side, short_side, divisor):
    """mmcv.rescale_size with a tuple, and PVT's AlignResize, in their own words."""
    scale = min(long_side / max(height, width), short_side / min(height, width))
    height, width = int(height * float(scale) + 0.5), int(width * float(scale) + 0.5)
    return (height, width), (-(height // -divisor) * divisor, -(width // -divisor) * divisor)


@pytest.mark.parametrize("size", [(512, 683), (256, 256), (1000, 300), (90, 2000), (1024, 768)])
def test_sizes_at_test_time_are_published(size):
    assert SEGMENTER_PRESETS["quadtree_b2"].sizes_for(*size) == mmcv_sizes(*size, 2048, 512, 32)


def test_sizes_at_test_time_by_hand():
    config = SEGMENTER_PRESETS["quadtree_b2"]
    assert config.sizes_for(512, 683) == ((512, 683), (512, 704))
    assert config.sizes_for(256, 300) == ((512, 600), (512, 608))  # enlarged, too
    assert config.sizes_for(100, 2048) == ((100, 2048), (128, 2048))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "vit_tiny_patch16_224"}, "maps at strides 16, 16, 16, expected 4, 8, 16 and 32"),
        ({"backbone": "quadtree_b9"}, "model is 'quadtree_b9', expected quadtree_b0"),
        ({"options": {"depht": 3}}, "options do not fit quadtree_b0"),
        ({"labels": []}, "labels has 0 names, expected 1 to 255"),
        ({"labels": ["a"] * 256}, "labels has 256 names"),
        ({"norm": "layer"}, "norm is 'layer', expected one of batch, group"),
        ({"norm": "group"}, "head_channels is 16, expected a multiple of 32"),
        ({"short_side": 600, "long_side": 512}, "expected 1 <= short_side <= long_side"),
    ],
)
def test_mistakes(change, message):
    with pytest.raises(ValueError, match=message):
        SegmenterConfig(**{"backbone": "quadtree_b0", "head_channels": 16, **change}).build()
