"""Loads published checkpoints, which store only weights: detects their kind, and the configuration that fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.recognition.ade20k import ADE20K_LABELS, IGNORE
from ..errors import InputError
from ..models.checkpoint import misfit, names_in, shapes, weights_in
from ..models.detection import BACKBONES, build_detector, coco_detector_config, detector_config
from ..models.keys import convert_published
from ..models.loftr import LOFTR_PRESETS, LoFTR, LoFTRConfig
from .config import with_weights

_LOFTR = replace(LOFTR_PRESETS["outdoor"], attention="linear", block="loftr")

# Architectures of published matchers. "loftr_old" is the one of LoFTR's first released weights.
ARCHITECTURES: dict[str, LoFTRConfig] = {
    **LOFTR_PRESETS,
    "loftr": _LOFTR,
    "loftr_old": replace(_LOFTR, position="sine_bug"),
}


def published_kind(content: Mapping[str, Any]) -> str | None:
    """Detect the kind of network in a published checkpoint from the names of its weights; None if they fit none."""
    names = names_in(content)
    if any(name.startswith(("bbox_head.", "roi_head.")) for name in names):
        return "detector"
    if any(name.startswith("decode_head.") for name in names):
        return "segmenter"
    if any(name.startswith(("patch_embed", "backbone.patch_embed")) for name in names):
        return "classifier" if any(name.startswith("head.") for name in names) else "backbone"
    if any(name.startswith(("matcher.", "loftr_", "coarse.")) for name in names):
        return "matcher"
    return None


def published_matcher(content: Mapping[str, Any], path: Path, architecture: str | None = None) -> LoFTR:
    """The matcher in a published checkpoint, as read from ``path``.

    architecture: a name in `ARCHITECTURES`; by default it is detected from the weights, and from the file's name where several fit.

    Raises:
        ValueError: an unknown architecture; weights that do not fit.
    """
    if architecture is not None and architecture not in ARCHITECTURES:
        raise InputError(f"unknown architecture {architecture!r}, expected one of {', '.join(ARCHITECTURES)}")
    try:
        state = weights_in(content)
        if not any(key.startswith("coarse.") for key in state):  # of ours
            state = convert_published(state)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    rest = {key: value for key, value in state.items() if key != "bin_score"}
    config = ARCHITECTURES[architecture or _detect_architecture(rest, path)]
    if len(rest) < len(state):
        config = replace(config, matching="optimal_transport")
    return with_weights(LoFTR(config), state, path)


def published_classifier(content: Mapping[str, Any], path: Path) -> nn.Module:
    """The classifier in a checkpoint, as read from ``path``, or the backbone of a classifier, detector or segmenter.

    Raises:
        ValueError: weights that do not fit.
    """
    from ..models.classifier import ClassifierConfig, imagenet_labels

    try:
        state = weights_in(content)
        if "patch_embed.proj.weight" not in state:  # the names of trainings with timm
            state = convert_published(state)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if "head.weight" in state:
        classes = len(state["head.weight"]) if state["head.weight"].dim() == 2 else 0
        labels = imagenet_labels() if classes == 1000 else [str(n) for n in range(classes)]
        options: dict[str, Any] = {}
    else:
        labels, options = [], {"topk": 32, "value_act": "relu"}  # of a detector
    for n in range(5):
        config = ClassifierConfig(f"quadtree_b{n}", labels, options, crop_pct=0.875)
        with torch.device("meta"):
            fits = not misfit(config.build().state_dict(), state)
        if fits:
            return with_weights(config.build(), state, path)
    raise InputError(
        f"{path} fits none of quadtree_b0 .. quadtree_b4, expected one of them as a classifier or as a backbone"
    )


def published_detector(content: Mapping[str, Any], path: Path, names: Sequence[str] | None = None) -> nn.Module:
    """The detector in a checkpoint of mmdetection, as read from ``path``: the first of ``names`` that fits.

    names: detectors or backbones; None: all of `BACKBONES`.

    Raises:
        ValueError: weights that do not fit.
    """
    from ..models.detection.keys import convert_detector

    try:
        kind, state = convert_detector(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    first = (
        "head.classification_head.cls_logits.bias" if kind == "retinanet" else "roi_heads.box_predictor.cls_score.bias"
    )
    if first not in state or state[first].dim() != 1:
        raise InputError(f"{path}: weights of a {kind} without its classification layer, expected all of them")
    classes = len(state[first]) // 9 if kind == "retinanet" else len(state[first]) - 1
    problem = ""
    names = BACKBONES if names is None else names
    for name in names:
        full = name if name.startswith(kind) else f"{kind}_{name}"
        config = (
            coco_detector_config(full)
            if classes == 80
            else detector_config(full, [str(n) for n in range(1, classes + 1)])
        )
        with torch.device("meta"):
            wanted = build_detector(config).state_dict()
        given = {key: value for key, value in state.items() if key in wanted or not key.endswith("num_batches_tracked")}
        problem = misfit(wanted, given)
        if not problem:
            return with_weights(build_detector(config), given, path)
    if len(names) == 1:
        raise InputError(f"{path}: weights do not fit the model: {problem}")
    raise InputError(f"{path} is a {kind} of mmdetection's that fits none of the backbones {', '.join(names)}")


def published_segmenter(content: Mapping[str, Any], path: Path) -> nn.Module:
    """The segmenter in a checkpoint of mmsegmentation, as read from ``path``.

    Raises:
        ValueError: weights that do not fit.
    """
    from ..models.segmentation import convert_segmenter, semantic_fpn

    try:
        state = convert_segmenter(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    last = state.get("head.classify.weight")
    classes = len(last) if last is not None and last.dim() else 0
    if classes > IGNORE:
        raise InputError(f"{path} has {classes} classes, expected {IGNORE} at most")
    labels = _segmenter_labels(content, classes)
    for n in range(5):
        config = semantic_fpn(f"quadtree_b{n}", labels)
        with torch.device("meta"):
            fits = not misfit(config.build().state_dict(), state)
        if fits:
            return with_weights(config.build(), state, path)
    raise InputError(f"{path} fits none of quadtree_b0 .. quadtree_b4 with Semantic FPN as published")


PUBLISHED_NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "matcher": published_matcher,
    "classifier": published_classifier,
    "backbone": published_classifier,
    "detector": published_detector,
    "segmenter": published_segmenter,
}


def from_timm(name: str) -> nn.Module:
    """Load a classifier of timm with pretrained weights; its ``config`` is a `ClassifierConfig`.

    Raises:
        ValueError: timm has no weights for it.
        OSError: they cannot be downloaded.
    """
    from ..models.classifier import ClassifierConfig, build_backbone, imagenet_labels
    from .hub import quiet_hub

    try:
        with quiet_hub():
            model = build_backbone(name, pretrained=True)
    except OSError as error:  # of the Hub, over several lines
        raise OSError(f"{name} cannot be loaded: {' '.join(str(error).split())}") from None
    except RuntimeError as error:
        raise InputError(f"{name}: {' '.join(str(error).split())}") from None
    cfg = model.pretrained_cfg
    if cfg["num_classes"] != 1000:
        labels = cfg.get("label_names") or [str(n) for n in range(cfg["num_classes"])]
    else:
        labels = imagenet_labels()
    names = ("input_size", "mean", "std", "interpolation", "crop_pct")
    model.config = ClassifierConfig(name, labels, **{key: cfg[key] for key in names})
    return model.eval()


def _detect_architecture(state: Mapping[str, Tensor], path: Path) -> str:
    """Find the architecture that the weights fit; the file's name decides between those that differ only in options."""
    fitting = []
    for name, config in ARCHITECTURES.items():
        with torch.device("meta"):
            wanted = shapes(LoFTR(config).state_dict())
        if wanted == shapes(state):
            fitting.append(name)
    if not fitting:
        raise InputError(f"{path} does not fit any known architecture: {', '.join(ARCHITECTURES)}")
    named = [name for name in fitting if name in path.stem]
    chosen = named if len(named) == 1 else fitting
    if len(chosen) > 1:
        raise InputError(
            f"{path} fits {' and '.join(chosen)}, which differ in options that the file does not store; "
            f"choose with: quadtree convert {path} OUT.safetensors --architecture {chosen[0]}"
        )
    return chosen[0]


def _segmenter_labels(content: Mapping[str, Any], classes: int) -> list[str]:
    """Names of the classes: those that mmsegmentation stored; else those of ADE20K, if the number agrees; else numbers."""
    meta = content.get("meta")
    names = meta.get("CLASSES") if isinstance(meta, Mapping) else None
    if isinstance(names, (list, tuple)) and len(names) == classes and all(isinstance(name, str) for name in names):
        return [name.strip() for name in names]
    return list(ADE20K_LABELS) if classes == len(ADE20K_LABELS) else [str(n) for n in range(max(classes, 1))]
