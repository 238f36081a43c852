"""Loading and storing classifiers: embedded, published, and of our own training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..extras import require
from ..models.classifier import ClassifierConfig, build_backbone, classifier_config, knows_backbone
from .convert import convert_published
from .hub import in_hub_or_folder, quiet_hub
from .published import read_checkpoint, weights_in
from .registry import PRETRAINED, find, is_checkpoint, is_safetensors, located, names_for
from .storage import filled, misfit, read_metadata, read_safetensors, restored, trained_weights, write_safetensors


def load_classifier(name_or_path: str | Path) -> nn.Module:
    """Load a classifier, on the CPU, in eval mode and float32; its ``config`` is a `ClassifierConfig`.

    Args:
        name_or_path: a name in `PRETRAINED`; a .safetensors file of `save_classifier`; a checkpoint, of our training or published;
            a folder of `Classifier.save_pretrained` or of timm's `save_for_hf`, or such a repository, "hf-hub:OWNER/NAME"; or a name of timm's
            that has weights, such as "pvt_v2_b0".

    Raises:
        ValueError: an unknown name, or weights that do not fit.
        OSError: a file that is missing, or cannot be downloaded.
    """
    name, path = str(name_or_path), Path(name_or_path)
    row = find(name, "classification")
    by_timm = row is not None and row.url is not None  # the backbones, which timm downloads through models/pvt.py
    if row is None and name not in PRETRAINED and not in_hub_or_folder(name_or_path):
        by_timm = not is_safetensors(path) and not is_checkpoint(path)
    if by_timm:
        return _from_timm(name)
    path, _ = located(name_or_path, "classification")
    if not is_safetensors(path):
        return classifier_from(read_checkpoint(path), path)
    if in_hub_or_folder(name_or_path) and "config" not in read_metadata(path):  # as timm writes them
        return _from_timm(name if path.parent != Path(name) else f"local-dir:{name}")
    state, content = read_safetensors(path, "classifier", lambda name: name != "LoFTR")
    if "classifier" not in content:
        raise InputError(f"{path} is not of a classifier, expected a file that quadtree convert wrote for one")
    return restored(ClassifierConfig, ClassifierConfig.build, content["classifier"], state, path)


def is_classifier(content: Mapping[str, Any]) -> bool:
    """Whether a checkpoint, as read, is of a classifier or of a backbone, of our training or published."""
    try:
        return "classifier" in content or any(key.startswith("stages.") for key in _renamed(content))
    except InputError:
        return False


def save_classifier(model: nn.Module, path: str | Path, *, half: bool = False) -> None:
    """Write weights and configuration to a .safetensors file, whole or not at all; ``half`` stores parameters as float16.

    Raises:
        ValueError: another suffix, or parameters that float16 cannot hold.
    """
    write_safetensors(model, {"classifier": asdict(classifier_config(model))}, path, half=half)


def load_backbone(model: nn.Module, name_or_path: str | Path) -> None:
    """Put weights into ``model``; those of a head for other classes are left out.

    Raises:
        ValueError, OSError: as `load_classifier`; weights of another network.
    """
    state = load_classifier(name_or_path).state_dict()
    wanted = model.state_dict()
    head = {f"{name}.{end}" for name in _classifiers(model) for end in ("weight", "bias")}
    other = {key for key in head & wanted.keys() if key not in state or state[key].shape != wanted[key].shape}
    state = {
        key: value for key, value in state.items() if key not in (other or ()) and (key in wanted or key not in head)
    }
    if problem := misfit({key: value for key, value in wanted.items() if key not in other}, state):
        raise InputError(f"{name_or_path}: weights do not fit the model: {problem}")
    model.load_state_dict(state, strict=False)


def classifier_from(content: Mapping[str, Any], path: Path) -> nn.Module:
    """The classifier of a checkpoint, as read from ``path``.

    Raises:
        ValueError: weights that do not fit.
    """
    if isinstance(content.get("classifier"), Mapping):  # of our own training
        return restored(
            ClassifierConfig, ClassifierConfig.build, content["classifier"], trained_weights(content, path), path
        )
    try:
        state = _renamed(content)
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
            return filled(config.build(), state, path)
    raise InputError(
        f"{path} fits none of quadtree_b0 .. quadtree_b4, expected one of them as a classifier or as a backbone"
    )


def _renamed(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights of a backbone in timm's names, which trainings with timm have, or in the published ones."""
    state = weights_in(content)
    return state if "patch_embed.proj.weight" in state else convert_published(state)


def _from_timm(name: str) -> nn.Module:
    if not knows_backbone(name):
        raise InputError(
            f"unknown model {name!r}, expected one of {', '.join(names_for('classification'))}, a name that timm knows, or the path of a file"
        )
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


def imagenet_labels() -> list[str]:
    """Short names of the 1000 classes of ImageNet-1K, from timm."""
    info = require("timm.data", "classify").ImageNetInfo()
    return [info.index_to_description(n).partition(",")[0] for n in range(info.num_classes())]


def _classifiers(model: nn.Module) -> tuple[str, ...]:
    names = getattr(model, "default_cfg", {}).get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)
