"""The detectors: any backbone, size and batch; classes; what a configuration may not be."""

import pytest
import torch

from quadtree_attention.models.detection import (
    DETECTORS,
    DetectorConfig,
    build_detector,
    coco_detector_config,
    detector_config,
)
from quadtree_attention.nn import QuadtreeAttention

TINY = {"depths": [1, 1, 1, 1], "embed_dims": [8, 8, 16, 16], "num_heads": [1, 1, 2, 2], "mlp_ratios": [2, 2, 2, 2]}


def small(kind="retinanet", backbone="quadtree_b0", **changes):
    torch.manual_seed(0)
    options = {"topk": 4, **TINY} if backbone.startswith("quadtree") else TINY if "pvt" in backbone else {}
    defaults = {"channels": 16, "features": 16, "min_size": 64, "max_size": 96, "options": options}
    return DetectorConfig(kind, backbone, ["cat", "dog"], **{**defaults, **changes})


@pytest.mark.parametrize("backbone", ["quadtree_b0", "pvt_v2_b0", "resnet18"])
@pytest.mark.parametrize("kind", DETECTORS)
def test_any_size_and_batch(kind, backbone):
    config = small(
        kind, backbone, norm="group", score_threshold=0.0, max_detections=7, frozen_norm=backbone == "resnet18"
    )
    model = build_detector(config)
    images = [torch.rand(3, 50, 61), torch.rand(3, 97, 40)]
    targets = [
        {
            "boxes": torch.tensor([[4.0, 5, 40, 45]]),
            "labels": torch.tensor([1]),
            "masks": torch.ones(1, 50, 61, dtype=torch.uint8),
        },
        {
            "boxes": torch.zeros(0, 4),
            "labels": torch.zeros(0, dtype=torch.int64),
            "masks": torch.zeros(0, 97, 40, dtype=torch.uint8),
        },
    ]
    losses = model(images, targets)
    assert len(losses) == (2 if kind == "retinanet" else 5)
    sum(losses.values()).backward()
    learnt = dict(model.named_parameters())
    without = [name for name, p in learnt.items() if p.grad is None]
    assert not [name for name in without if "backbone.body" not in name or "stages" in name]
    if backbone == "resnet18":
        assert not any("bn" in name for name in learnt)  # frozen
    with torch.no_grad():
        found = model.eval()(images)
        alone = model(images[1:])
    for one, image in zip(found, images, strict=True):
        assert len(one["boxes"]) == len(one["labels"]) == len(one["scores"]) <= 7
        assert one["labels"].min() >= 0
        assert one["labels"].max() <= 1
        assert (one["boxes"] >= 0).all()
        assert (one["boxes"][:, 2] <= image.shape[2] + 1e-3).all()
        assert (one["boxes"][:, 3] <= image.shape[1] + 1e-3).all()
        assert (one["scores"].diff() <= 0).all()
        if kind == "mask_rcnn":
            assert one["masks"].shape == (len(one["boxes"]), *image.shape[1:])
            assert one["masks"].dtype == torch.bool
    assert alone[0]["boxes"].shape[1] == 4


def test_labels_are_those_of_the_targets():
    """The first class is 0 in both; torchvision's Mask R-CNN has the background there."""
    image = [torch.rand(3, 64, 64)]
    for kind in DETECTORS:
        model = build_detector(small(kind, max_detections=50, score_threshold=0.0))
        last = (
            model.head.classification_head.cls_logits
            if kind == "retinanet"
            else model.roi_heads.box_predictor.cls_score
        )
        with torch.no_grad():
            last.weight.zero_()
            last.bias.copy_(
                torch.tensor([-9.0, 3.0]).repeat(9) if kind == "retinanet" else torch.tensor([0.0, -9.0, 3.0])
            )
            found = model.eval()(image)[0]
        assert (found["labels"] == 1)[found["scores"] > 0.5].all()
        assert (found["scores"] > 0.5).any()


def test_the_presets_are_the_published_ones():
    config = coco_detector_config("mask_rcnn_quadtree_b1")
    assert (config.detector, config.backbone, config.norm, config.frozen_norm) == (
        "mask_rcnn",
        "quadtree_b1",
        "none",
        False,
    )
    assert (config.min_size, config.max_size, config.score_threshold, config.nms_threshold) == (800, 1333, 0.05, 0.5)
    assert len(config.labels) == len(config.ids) == 80
    known = {
        "person": 1,
        "stop sign": 13,
        "parking meter": 14,
        "hair drier": 89,
        "toothbrush": 90,
        "dining table": 67,
        "tv": 72,
    }
    ids = dict(zip(config.labels, config.ids, strict=True))
    assert {name: ids[name] for name in known} == known
    assert config.labels.index("stop sign") == 11
    assert ids == dict(sorted(ids.items(), key=lambda item: item[1]))
    small_one = build_detector(
        detector_config("retinanet_quadtree_b0", ["a"], options={"topk": 32, "value_act": "relu", **TINY})
    )
    attention = [module for module in small_one.modules() if isinstance(module, QuadtreeAttention)]
    assert {module.topk[0] for module in attention if module.topk} == {32}
    relus = [module for one in attention for module in one.modules() if isinstance(module, torch.nn.ReLU)]
    assert relus
    assert not [module for one in attention for module in one.modules() if isinstance(module, torch.nn.GELU)]
    assert detector_config("retinanet_resnext101_32x4d", ["a"]).frozen_norm
    assert detector_config("retinanet_pvt_v2_b2", ["a"]).options == {"drop_path_rate": 0.1}
    assert not detector_config("retinanet_pvt_v2_b2", ["a"]).frozen_norm
    model = build_detector(
        coco_detector_config("retinanet_quadtree_b0", options=TINY | {"topk": 32, "value_act": "relu"})
    )
    assert model.backbone.strides == [8, 16, 32, 64, 128]
    assert model.head.classification_head.cls_logits.out_channels == 9 * 80


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"detector": "yolo"}, "detector is 'yolo', expected retinanet or mask_rcnn"),
        ({"labels": []}, "labels are empty"),
        ({"category_ids": [1]}, "got 1 category_ids for 2 labels"),
        ({"norm": "batch"}, "norm is 'batch', expected none or group"),
        ({"norm": "group", "channels": 12}, "channels is 12, expected a multiple of 8"),
        ({"extra_levels": 3}, "extra_levels is 3, expected 0, 1 or 2"),
        ({"convs": 0}, "convs is 0, expected 1 to 4"),
        ({"min_size": 0}, "min_size is 0, expected at least 1"),
        ({"backbone": "quadtree_b9"}, "model is 'quadtree_b9', expected quadtree_b0"),
        ({"backbone": "vit_tiny_patch16_224", "options": {}}, "has maps at 1/16, 1/16, 1/16, expected one at 1/8 too"),
        ({"options": {"depht": 1}}, "options do not fit quadtree_b0"),
    ],
)
def test_bad_configurations(changes, message):
    values = {"detector": "retinanet", "backbone": "quadtree_b0", "labels": ["cat", "dog"], "options": TINY} | changes
    with pytest.raises(ValueError, match=message):
        build_detector(DetectorConfig(**values))


def test_unknown_names():
    with pytest.raises(
        ValueError, match="unknown detector 'yolo_quadtree_b0', expected for example retinanet_quadtree_b0"
    ):
        detector_config("yolo_quadtree_b0", ["a"])
