"""Renames the weights of mmdetection's (2.x) RetinaNet and Mask R-CNN."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InputError
from ...extras import require
from ..checkpoint import weights_in
from ..keys import Rule, convert_by, convert_published

_WB = r"\.(?P<end>weight|bias)"
_CONVS = r"\.(?P<n>\d+)\.conv" + _WB


def _background_first(rows: Tensor) -> Tensor:
    """Move the background's row, which is published as the last one, to the front."""
    return rows.roll(1, 0)


def _with_background(count: int) -> Any:
    """Add ``count`` rows of zeros in front: the unused background rows that torchvision expects."""
    return lambda rows: F.pad(rows, (*(0, 0) * (rows.dim() - 1), count, 0))


def _neck(levels: int) -> tuple[Rule, ...]:
    """The pyramid's weights; convolutions beyond the backbone's ``levels`` make further maps."""
    return (
        Rule(r"neck\.lateral_convs" + _CONVS, r"backbone.fpn.inner_blocks.\g<n>.0.\g<end>"),
        *(
            Rule(rf"neck\.fpn_convs\.{n}\.conv" + _WB, rf"backbone.fpn.layer_blocks.{n}.0.\g<end>")
            for n in range(levels)
        ),
        *(
            Rule(rf"neck\.fpn_convs\.{levels + n}\.conv" + _WB, rf"backbone.fpn.extra_blocks.convs.{n}.\g<end>")
            for n in range(2)
        ),
    )


RETINANET = (
    *_neck(3),
    Rule(r"bbox_head\.cls_convs" + _CONVS, r"head.classification_head.conv.\g<n>.0.\g<end>"),
    Rule(r"bbox_head\.reg_convs" + _CONVS, r"head.regression_head.conv.\g<n>.0.\g<end>"),
    Rule(r"bbox_head\.retina_cls" + _WB, r"head.classification_head.cls_logits.\g<end>"),
    Rule(r"bbox_head\.retina_reg" + _WB, r"head.regression_head.bbox_reg.\g<end>"),
)
MASK_RCNN = (
    *_neck(4),
    Rule(r"rpn_head\.rpn_conv" + _WB, r"rpn.head.conv.0.0.\g<end>"),
    Rule(r"rpn_head\.rpn_cls" + _WB, r"rpn.head.cls_logits.\g<end>"),
    Rule(r"rpn_head\.rpn_reg" + _WB, r"rpn.head.bbox_pred.\g<end>"),
    Rule(r"roi_head\.bbox_head\.shared_fcs\.0" + _WB, r"roi_heads.box_head.fc6.\g<end>"),
    Rule(r"roi_head\.bbox_head\.shared_fcs\.1" + _WB, r"roi_heads.box_head.fc7.\g<end>"),
    Rule(r"roi_head\.bbox_head\.fc_cls" + _WB, r"roi_heads.box_predictor.cls_score.\g<end>", _background_first),
    Rule(r"roi_head\.bbox_head\.fc_reg" + _WB, r"roi_heads.box_predictor.bbox_pred.\g<end>", _with_background(4)),
    Rule(r"roi_head\.mask_head\.convs" + _CONVS, r"roi_heads.mask_head.\g<n>.0.\g<end>"),
    Rule(r"roi_head\.mask_head\.upsample" + _WB, r"roi_heads.mask_predictor.conv5_mask.\g<end>"),
    Rule(
        r"roi_head\.mask_head\.conv_logits" + _WB,
        r"roi_heads.mask_predictor.mask_fcn_logits.\g<end>",
        _with_background(1),
    ),
)


def convert_detector(state_dict: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """Rename the weights of a detector of mmdetection (2.x).

    Its backbone may be the published quadtree one, PVTv2, or a ResNet.

    Args:
        state_dict: keys as published, or a checkpoint that has them under "state_dict"; not changed.

    Returns:
        "retinanet" or "mask_rcnn", and the weights for the network of `DetectorConfig`.

    Raises:
        ValueError: keys that such a detector does not have; the message names the first few.
    """
    state = weights_in(state_dict)
    if not any(key.startswith("neck.") for key in state):
        raise InputError("no weights of a detector found, expected those of a RetinaNet or Mask R-CNN of mmdetection's")
    kind = "mask_rcnn" if any(key.startswith("roi_head.") for key in state) else "retinanet"
    body = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    rest = {key: value for key, value in state.items() if not key.startswith("backbone.")}
    family = MASK_RCNN if kind == "mask_rcnn" else RETINANET
    out = {f"backbone.body.{key}": value for key, value in flat_stages(_body(body)).items()}
    return kind, out | convert_by(family, rest, f"mmdetection's {kind}")


def _body(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's weights in timm's names."""
    if "conv1.weight" in state:
        return dict(state)  # a ResNet, whose names are the same everywhere
    if any(".attn.kv." in key for key in state):
        pvt = require("timm.models.pvt_v2", "classify")
        return pvt.checkpoint_filter_fn(dict(state), nn.Identity())
    return convert_published(state)


def flat_stages(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename as timm does with features_only, where the stages are separate modules."""
    return {re.sub(r"^stages\.(\d+)\.", r"stages_\1.", key): value for key, value in state.items()}
