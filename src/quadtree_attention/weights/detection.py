"""Loading and storing detectors: embedded, published (mmdetection's names), and of our own training."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..extras import require
from ..models.detection import BACKBONES, DetectorConfig, coco_detector, detector
from .classification import load_classifier
from .convert import Rule, convert_by, convert_published
from .published import names_in, read_checkpoint, weights_in
from .registry import is_safetensors, located
from .storage import filled, misfit, read_safetensors, restored, trained_weights, write_safetensors

if TYPE_CHECKING:
    from ..models.detection.model import MaskRCNN, RetinaNet

_WB = r"\.(?P<end>weight|bias)"
_CONVS = r"\.(?P<n>\d+)\.conv" + _WB


def _background_first(rows: Tensor) -> Tensor:
    """Rows of classes with the background's, which is the last as published, in front."""
    return rows.roll(1, 0)


def _with_background(count: int) -> Any:
    """Adds ``count`` rows of zeros in front: the unused background rows that torchvision expects."""
    return lambda rows: F.pad(rows, (*(0, 0) * (rows.dim() - 1), count, 0))


def _neck(levels: int) -> tuple[Rule, ...]:
    """Of the pyramid; convolutions beyond the backbone's ``levels`` make further maps."""
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
    """Bring the weights of a detector of mmdetection's (2.x) into our names.

    Its backbone may be the published quadtree one, PVTv2, or a ResNet.

    Args:
        state_dict: keys as published, or a checkpoint that has them under "state_dict"; left as it is.

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
    out = {f"backbone.body.{key}": value for key, value in _flat(_body(body)).items()}
    return kind, out | convert_by(family, rest, f"mmdetection's {kind}")


def load_detector(name_or_path: str | Path) -> RetinaNet | MaskRCNN:
    """Load a detector, on the CPU, in eval mode and float32; its ``config`` is a `DetectorConfig`.

    Args:
        name_or_path: a name in `PRETRAINED`; a .safetensors file of `save_detector`; a checkpoint, of our training or published; a
            folder of `Detector.save_pretrained`, or such a repository of the Hub, "hf-hub:OWNER/NAME".

    Raises:
        ValueError: an unknown name, or weights that do not fit.
        OSError: a file that is missing, or cannot be downloaded.
    """
    path, row = located(name_or_path, "detection")
    if is_safetensors(path):
        state, content = read_safetensors(path, "detector", lambda name: name in ("RetinaNet", "MaskRCNN"))
        return restored(DetectorConfig, DetectorConfig.build, content.get("detector"), state, path)
    return detector_from(read_checkpoint(path), path, None if row is None else (row.name.removesuffix("_1x"),))


def is_detector(content: Mapping[str, Any]) -> bool:
    """Whether a checkpoint, as read, is of a detector, of our training or published."""
    heads = ("bbox_head.", "roi_head.")
    return "detector" in content or any(key.startswith(heads) for key in names_in(content))


def detector_from(content: Mapping[str, Any], path: Path, names: Sequence[str] | None = None) -> RetinaNet | MaskRCNN:
    """The detector of a checkpoint, as read from ``path``: of our training; or published, the first of ``names`` that fits.

    names: of detectors, or of backbones alone; None: all of `BACKBONES`.

    Raises:
        ValueError: weights that do not fit.
    """
    if isinstance(content.get("detector"), Mapping):  # of our own training
        return restored(DetectorConfig, DetectorConfig.build, content["detector"], trained_weights(content, path), path)
    return _published(content, path, BACKBONES if names is None else names)


def save_detector(model: RetinaNet | MaskRCNN, path: str | Path, *, half: bool = False) -> None:
    """Write weights and configuration to a .safetensors file, whole or not at all; ``half`` stores parameters as float16.

    Raises:
        ValueError: another suffix, or parameters that float16 cannot hold.
    """
    write_safetensors(model, {"detector": asdict(model.config)}, path, half=half)


def load_body(model: nn.Module, name_or_path: str | Path) -> None:
    """Put the weights of a classifier into the backbone of a detector, or of any module that has it at ``backbone.body``; its head is left out.

    Raises:
        ValueError, OSError: as `load_classifier`; weights of another network.
    """
    body = model.get_submodule("backbone.body")
    wanted = body.state_dict()
    given = _flat(load_classifier(name_or_path).state_dict())
    heads = ("head", "fc.", "classifier", "norm.")
    given = {
        key: value
        for key, value in given.items()
        if key in wanted or not (key.startswith(heads) or key.endswith("num_batches_tracked"))
    }
    if problem := misfit(wanted, given):
        raise InputError(f"{name_or_path}: weights do not fit the backbone: {problem}")
    body.load_state_dict(given)


def _body(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's weights in timm's names."""
    if "conv1.weight" in state:
        return dict(state)  # a ResNet, whose names are the same everywhere
    if any(".attn.kv." in key for key in state):
        pvt = require("timm.models.pvt_v2", "classify")
        return pvt.checkpoint_filter_fn(dict(state), nn.Identity())
    return convert_published(state)


def _flat(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names as timm has them with features_only, where the stages are modules of their own."""
    return {re.sub(r"^stages\.(\d+)\.", r"stages_\1.", key): value for key, value in state.items()}


def _published(content: Mapping[str, Any], path: Path, names: Sequence[str]) -> RetinaNet | MaskRCNN:
    try:
        kind, state = convert_detector(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    first = (
        "head.classification_head.cls_logits.bias" if kind == "retinanet" else "roi_heads.box_predictor.cls_score.bias"
    )
    if first not in state or state[first].dim() != 1:
        raise InputError(f"{path}: weights of a {kind} without the layer that tells classes, expected all of them")
    classes = len(state[first]) // 9 if kind == "retinanet" else len(state[first]) - 1
    problem = ""
    for name in names:
        full = name if name.startswith(kind) else f"{kind}_{name}"
        config = coco_detector(full) if classes == 80 else detector(full, [str(n) for n in range(1, classes + 1)])
        with torch.device("meta"):
            wanted = config.build().state_dict()
        given = {key: value for key, value in state.items() if key in wanted or not key.endswith("num_batches_tracked")}
        problem = misfit(wanted, given)
        if not problem:
            return filled(config.build(), given, path)
    if len(names) == 1:
        raise InputError(f"{path}: weights do not fit the model: {problem}")
    raise InputError(f"{path} is a {kind} of mmdetection's that fits none of the backbones {', '.join(names)}")
