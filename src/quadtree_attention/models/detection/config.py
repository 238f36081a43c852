"""The configuration of a detector, and the detectors of the paper's comparison by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ...data.images import IMAGENET_MEAN, IMAGENET_STD
from ...errors import InputError
from ...extras import require

DetectorKind = Literal["retinanet", "mask_rcnn"]
DETECTORS = get_args(DetectorKind)
BACKBONES = (
    *(f"quadtree_b{n}" for n in range(5)),
    *(f"pvt_v2_b{n}" for n in range(6)),
    *("resnet18", "resnet50", "resnet101", "resnext101_32x4d"),
)


@dataclass(frozen=True)
class DetectorConfig:
    """Everything that defines a detector, except its weights. The defaults are those of the published detectors.

    detector: "retinanet" or "mask_rcnn"; backbone: any name in timm of a network with maps at 1/8, 1/16, 1/32 (and 1/4 for Mask R-CNN); labels: names
    of the classes, in order; category_ids: the number of each class in COCO files, by default 1, 2, ...; options: further arguments of the backbone.
    channels: of the feature pyramid and of the heads; convs: 3x3 convolutions in RetinaNet's heads before the last; norm: "none", or "group"
    for GroupNorm in pyramid and heads, to train from scratch; frozen_norm: freeze the batch norms of the backbone;
    extra_levels: of RetinaNet's pyramid above 1/32, up to 2; anchor_scale: sides of the smallest anchors in strides of the map (published: 4 for
    RetinaNet, 8 for Mask R-CNN); features: width of Mask R-CNN's box head.
    min_size, max_size: images are scaled until the shorter side has min_size pixels, or the longer one max_size; mean, std: of each channel
    (RGB), in 0..1; score_threshold, nms_threshold, max_detections: of results; candidates: anchors kept per level before suppression.
    """

    detector: DetectorKind
    backbone: str
    labels: Sequence[str]
    category_ids: Sequence[int] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    channels: int = 256
    convs: int = 4
    norm: Literal["none", "group"] = "none"
    frozen_norm: bool = False
    extra_levels: int = 2
    anchor_scale: float | None = None
    features: int = 1024
    min_size: int = 800
    max_size: int = 1333
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    max_detections: int = 100
    candidates: int = 1000

    def __post_init__(self) -> None:
        if self.detector not in DETECTORS:
            raise InputError(f"detector is {self.detector!r}, expected {' or '.join(DETECTORS)}")
        if not self.labels:
            raise InputError("labels are empty, expected the names of the classes, without the background")
        if self.category_ids is not None and len(self.category_ids) != len(self.labels):
            raise InputError(
                f"got {len(self.category_ids)} category_ids for {len(self.labels)} labels, expected one each"
            )
        if self.norm not in ("none", "group"):
            raise InputError(f"norm is {self.norm!r}, expected none or group")
        if self.norm == "group" and self.channels % 8:
            raise InputError(f"channels is {self.channels}, expected a multiple of 8, the groups of GroupNorm")
        if not 0 <= self.extra_levels <= 2:
            raise InputError(f"extra_levels is {self.extra_levels}, expected 0, 1 or 2")
        for name in ("channels", "min_size", "max_size", "max_detections", "candidates", "features"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, expected at least 1")
        if not 1 <= self.convs <= 4:
            raise InputError(f"convs is {self.convs}, expected 1 to 4")

    @property
    def ids(self) -> list[int]:
        """The number of each class in COCO files."""
        return list(self.category_ids or range(1, len(self.labels) + 1))


def detector_config(name: str, labels: Sequence[str], **changes: Any) -> DetectorConfig:
    """The configuration for a name such as "retinanet_quadtree_b2" or "mask_rcnn_pvt_v2_b1", with other classes.

    Quadtree backbones have K=32 and ReLU in the value branches, as published for detection. They and PVTv2 train with drop path; other backbones
    have their batch norms frozen.

    Raises:
        ValueError: not the name of a detector and a backbone.
    """
    match = re.fullmatch(rf"({'|'.join(DETECTORS)})_(\w+)", name)
    if match is None:
        names = ", ".join(f"{kind}_{BACKBONES[0]}" for kind in DETECTORS)
        raise InputError(f"unknown detector {name!r}, expected for example {names}; backbones: {', '.join(BACKBONES)}")
    kind: DetectorKind = "retinanet" if match[1] == "retinanet" else "mask_rcnn"
    backbone = match[2]
    options: dict[str, Any] = {}
    if backbone.startswith(("quadtree_", "pvt_v2_")):
        options["drop_path_rate"] = 0.1
    if backbone.startswith("quadtree_"):
        options |= {"topk": 32, "value_act": "relu"}
    return DetectorConfig(kind, backbone, labels, **{"options": options, "frozen_norm": not options, **changes})


def coco_detector_config(name: str, **changes: Any) -> DetectorConfig:
    """The same as `detector_config`, for the 80 classes of COCO, whose numbers in COCO's files go up to 90."""
    weights = require("torchvision.models.detection", "detect").RetinaNet_ResNet50_FPN_Weights.COCO_V1
    names = weights.meta["categories"]  # at their numbers; those that COCO left out are N/A, 0 is the background
    ids = [number for number, label in enumerate(names) if number and label != "N/A"]
    return detector_config(name, [names[number] for number in ids], category_ids=ids, **changes)
