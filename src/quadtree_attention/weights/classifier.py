"""Loading and storing classifiers: embedded, published, and of our own training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..extras import require
from ..models.classifier import ClassifierConfig, build_backbone
from .convert import convert_published
from .hub import find_weights, in_hub_or_folder
from .published import read_checkpoint
from .registry import PRETRAINED, find, has_config, misfit, read_safetensors, write_safetensors


def load_classifier(name_or_path: str | Path) -> tuple[nn.Module, ClassifierConfig]:
    """Load a classifier, on the CPU, in eval mode and float32.

    Args:
        name_or_path: a name in `PRETRAINED`; a .safetensors file of `save_classifier`; a .ckpt, .pth or .pt file, of our training or published;
            a folder of `Classifier.save_pretrained` or of timm's `save_for_hf`, or such a repository, "hf-hub:OWNER/NAME"; or a name of timm's
            that has weights, such as "pvt_v2_b0".

    Raises:
        ValueError: an unknown name, or weights that do not fit.
        OSError: a file that is missing, or cannot be downloaded.
    """
    names = [row.name for row in PRETRAINED.values() if row.task == "classification"]
    name, path = str(name_or_path), Path(name_or_path)
    row = find(name, "classification")
    if row is not None and row.url is None:
        return _from_safetensors(row.path)
    if name in PRETRAINED and row is None:
        raise ValueError(f"{name} is for {PRETRAINED[name].task}, expected {', '.join(names)}, or the path of a file")
    if in_hub_or_folder(name_or_path):
        file = find_weights(name_or_path)
        if has_config(file):
            return _from_safetensors(file)
        return _from_timm(f"local-dir:{path}" if path.is_dir() else name, names)
    if path.suffix not in (".safetensors", ".ckpt", ".pth", ".pt"):
        return _from_timm(name, names)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, expected a file of weights or one of {', '.join(names)}")
    return _from_safetensors(path) if path.suffix == ".safetensors" else _from_checkpoint(path)


def is_classifier(path: Path) -> bool:
    """Whether a checkpoint is of a classifier or of a backbone, of our training or published; False for what is no checkpoint."""
    if path.suffix not in (".ckpt", ".pth", ".pt") or not path.is_file():
        return False
    content = read_checkpoint(path)
    try:
        return "classifier" in content or any(key.startswith("stages.") for key in convert_published(content))
    except ValueError:
        return False


def save_classifier(model: nn.Module, config: ClassifierConfig, path: str | Path, *, half: bool = False) -> None:
    """Write weights and configuration to a .safetensors file, whole or not at all; ``half`` stores parameters as float16.

    Raises:
        ValueError: another suffix, or parameters that float16 cannot hold.
    """
    write_safetensors(model, {"classifier": asdict(config)}, path, half=half)


def load_backbone(model: nn.Module, name_or_path: str | Path) -> None:
    """Put weights into ``model``; those of a head for other classes are left out.

    Raises:
        ValueError, OSError: as `load_classifier`; weights of another network.
    """
    state = load_classifier(name_or_path)[0].state_dict()
    wanted = model.state_dict()
    head = {f"{name}.{end}" for name in _classifiers(model) for end in ("weight", "bias")}
    other = {key for key in head & wanted.keys() if key not in state or state[key].shape != wanted[key].shape}
    state = {
        key: value for key, value in state.items() if key not in (other or ()) and (key in wanted or key not in head)
    }
    if problem := misfit({key: value for key, value in wanted.items() if key not in other}, state):
        raise ValueError(f"{name_or_path}: weights do not fit the model: {problem}")
    model.load_state_dict(state, strict=False)


def _from_safetensors(path: Path) -> tuple[nn.Module, ClassifierConfig]:
    state, content = read_safetensors(path, "classifier", lambda name: name != "LoFTR")
    if "classifier" not in content:
        raise ValueError(f"{path} is not of a classifier, expected a file that quadtree convert wrote for one")
    return _build(_config(content["classifier"], path), state, path)


def _from_checkpoint(path: Path) -> tuple[nn.Module, ClassifierConfig]:
    content = read_checkpoint(path)
    if isinstance(content.get("classifier"), Mapping):  # of our own training
        weights = {
            key.removeprefix("model."): value
            for key, value in content["state_dict"].items()
            if key.startswith("model.")
        }
        return _build(_config(content["classifier"], path), weights, path)
    try:
        state = convert_published(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    kinds = ((imagenet_labels(), {}), ([], {"topk": 32, "value_act": "relu"}))  # with a head, and without
    for n in range(5):
        for labels, options in kinds:
            config = ClassifierConfig(f"quadtree_b{n}", labels, options, crop_pct=0.875)
            with torch.device("meta"):
                fits = not misfit(config.build().state_dict(), state)
            if fits:
                return _build(config, state, path)
    raise ValueError(
        f"{path} fits none of quadtree_b0 .. quadtree_b4, expected one of them with 1000 classes or as a backbone"
    )


def _from_timm(name: str, names: Sequence[str]) -> tuple[nn.Module, ClassifierConfig]:
    timm = require("timm", "classify")
    if ":" not in name and not timm.is_model(name.partition(".")[0]):  # "hf-hub:...", "local-dir:..."
        raise ValueError(
            f"unknown model {name!r}, expected one of {', '.join(names)}, a name that timm knows, or the path of a file"
        )
    try:
        model = build_backbone(name, pretrained=True)
    except RuntimeError as error:
        raise ValueError(f"{name}: {' '.join(str(error).split())}") from None
    cfg = model.pretrained_cfg
    if cfg["num_classes"] != 1000:
        labels = cfg.get("label_names") or [str(n) for n in range(cfg["num_classes"])]
    else:
        labels = imagenet_labels()
    names = ("input_size", "mean", "std", "interpolation", "crop_pct")
    return model.eval(), ClassifierConfig(name, labels, **{key: cfg[key] for key in names})


def imagenet_labels() -> list[str]:
    """Short names of the 1000 classes of ImageNet-1K, from timm."""
    info = require("timm.data", "classify").ImageNetInfo()
    return [info.index_to_description(n).partition(",")[0] for n in range(info.num_classes())]


def _build(config: ClassifierConfig, state: Mapping[str, Tensor], path: Path) -> tuple[nn.Module, ClassifierConfig]:
    model = config.build()
    if problem := misfit(model.state_dict(), state):
        raise ValueError(f"{path}: weights do not fit the model: {problem}")
    model.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in state.items()})
    return model.eval(), config


def _config(values: Mapping[str, Any], path: Path) -> ClassifierConfig:
    unknown = set(values) - {field.name for field in fields(ClassifierConfig)}
    if unknown:
        raise ValueError(
            f"{path} has options that this version does not know: {', '.join(sorted(unknown))}; update quadtree-attention"
        )
    return ClassifierConfig(**values)


def _classifiers(model: nn.Module) -> tuple[str, ...]:
    names = getattr(model, "default_cfg", {}).get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)
