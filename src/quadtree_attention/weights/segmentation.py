"""Loading and storing segmenters: embedded, published with mmsegmentation, and of our own training."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.recognition.ade20k import ADE20K_LABELS, IGNORE
from ..errors import InputError
from ..models.segmentation import SegmenterConfig, SemanticFPN, semantic_fpn
from .classification import load_classifier
from .convert import BACKBONE, Rule, convert_by
from .published import names_in, read_checkpoint
from .registry import find, is_checkpoint, is_safetensors, located
from .storage import filled, misfit, read_metadata, read_safetensors, restored, trained_weights

_END = r"\.(?P<end>weight|bias|running_mean|running_var|num_batches_tracked)"
SEMANTIC_FPN = (  # mmsegmentation's EncoderDecoder of a backbone, FPN and FPNHead
    *(rule.under(r"backbone\.", "backbone.") for rule in BACKBONE),
    Rule(r"neck\.lateral_convs\.(?P<n>\d+)\.conv\.(?P<end>weight|bias)", r"neck.inner_blocks.\g<n>.0.\g<end>"),
    Rule(r"neck\.fpn_convs\.(?P<n>\d+)\.conv\.(?P<end>weight|bias)", r"neck.layer_blocks.\g<n>.0.\g<end>"),
    Rule(r"decode_head\.scale_heads\.(?P<n>\d+)\.(?P<k>\d+)\.conv\.weight", r"head.scales.\g<n>.\g<k>.0.weight"),
    Rule(r"decode_head\.scale_heads\.(?P<n>\d+)\.(?P<k>\d+)\.(bn|gn)" + _END, r"head.scales.\g<n>.\g<k>.1.\g<end>"),
    Rule(r"decode_head\.conv_seg\.(?P<end>weight|bias)", r"head.classify.\g<end>"),
)


def convert_segmenter(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Bring the weights of a Semantic FPN with a quadtree backbone, in mmsegmentation's names, into ours.

    Takes a state_dict, or a checkpoint that has one under "state_dict". The result fits `SemanticFPN`; tensors share memory with the given ones.

    Raises:
        ValueError: keys that such a network does not have; the message names the first few.
    """
    state = convert_by(SEMANTIC_FPN, state_dict, "a Semantic FPN of mmsegmentation")
    # timm's features_only joins the names of modules in a sequence.
    return {re.sub(r"^backbone\.stages\.", "backbone.stages_", key): value for key, value in state.items()}


def load_segmenter(name_or_path: str | Path) -> SemanticFPN:
    """Load a segmenter, on the CPU, in eval mode and float32.

    name_or_path: a name in `PRETRAINED`; a .safetensors file of `save_model`; a checkpoint, of our training or published; a
        folder of `Segmenter.save_pretrained`, or such a repository of the Hub, "hf-hub:OWNER/NAME".

    Raises:
        ValueError: an unknown name, or weights that do not fit.
        OSError: a file that is missing, or cannot be downloaded.
    """
    path, _ = located(name_or_path, "segmentation")
    if is_safetensors(path):
        state, values = read_safetensors(path, "segmenter", lambda name: name == "SemanticFPN")
        return restored(SegmenterConfig, SegmenterConfig.build, values, state, path)
    return segmenter_from(read_checkpoint(path), path)


def is_segmenter(content: Mapping[str, Any]) -> bool:
    """Whether a checkpoint, as read, is of a segmenter, of our training or published."""
    return "segmenter" in content or any(key.startswith("decode_head.") for key in names_in(content))


def load_weights(model: SemanticFPN, name_or_path: str | Path) -> None:
    """Put weights into ``model``: a segmenter's, of which layers of neck and head with another shape stay as they are, or a classifier's backbone.

    Raises:
        ValueError, OSError: as `load_segmenter`; a backbone that does not fit.
    """
    wanted = model.state_dict()
    segmenter = _segmenter(name_or_path)
    if segmenter is not None:
        state = dict(segmenter.state_dict())
    else:
        whole = load_classifier(name_or_path).state_dict()
        plain = {key: re.sub(r"^backbone\.([a-z]+)_(\d+)\.", r"backbone.\1.\2.", key) for key in wanted}
        state = {
            key: whole[name.removeprefix("backbone.")]
            for key, name in plain.items()
            if name.removeprefix("backbone.") in whole and key.startswith("backbone.")
        }
    backbone = ({k: v for k, v in s.items() if k.startswith("backbone.")} for s in (wanted, state))
    if problem := misfit(*backbone):
        raise InputError(f"{name_or_path}: weights do not fit the backbone: {problem}")
    fitting = {key: value for key, value in state.items() if key in wanted and value.shape == wanted[key].shape}
    model.load_state_dict(fitting, strict=False)


def _segmenter(name_or_path: str | Path) -> SemanticFPN | None:
    """The segmenter of that name or in that file; None if it is anything else."""
    path = Path(name_or_path)
    if find(str(name_or_path), "segmentation") is not None or _is_ours(path):
        return load_segmenter(name_or_path)
    if is_checkpoint(path) and path.is_file():
        content = read_checkpoint(path)
        return segmenter_from(content, path) if is_segmenter(content) else None
    return None


def _is_ours(path: Path) -> bool:
    return is_safetensors(path) and path.is_file() and read_metadata(path).get("model") == "SemanticFPN"


def segmenter_from(content: Mapping[str, Any], path: Path) -> SemanticFPN:
    """The segmenter of a checkpoint, as read from ``path``.

    Raises:
        ValueError: weights that do not fit.
    """
    if isinstance(content.get("segmenter"), Mapping):  # of our own training
        return restored(
            SegmenterConfig, SegmenterConfig.build, content["segmenter"], trained_weights(content, path), path
        )
    try:
        state = convert_segmenter(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    last = state.get("head.classify.weight")
    classes = len(last) if last is not None and last.dim() else 0
    if classes > IGNORE:
        raise InputError(f"{path} has {classes} classes, expected {IGNORE} at most")
    labels = _labels(content, classes)
    for n in range(5):
        config = semantic_fpn(f"quadtree_b{n}", labels)
        with torch.device("meta"):
            fits = not misfit(config.build().state_dict(), state)
        if fits:
            return filled(config.build(), state, path)
    raise InputError(f"{path} fits none of quadtree_b0 .. quadtree_b4 with Semantic FPN as published")


def _labels(content: Mapping[str, Any], classes: int) -> list[str]:
    """Names of the classes: those that mmsegmentation stored; else ADE20K's, if there are as many; else numbers."""
    meta = content.get("meta")
    names = meta.get("CLASSES") if isinstance(meta, Mapping) else None
    if isinstance(names, (list, tuple)) and len(names) == classes and all(isinstance(name, str) for name in names):
        return [name.strip() for name in names]
    return list(ADE20K_LABELS) if classes == len(ADE20K_LABELS) else [str(n) for n in range(max(classes, 1))]
