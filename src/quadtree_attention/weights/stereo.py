"""Weights of stereo networks: embedded ones, and files of our training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..extras import require
from ..models.sttr import STTR, STTRConfig
from .hub import find_weights, in_hub_or_folder
from .published import read_checkpoint
from .registry import PRETRAINED, find


def load_stereo(name_or_path: str | Path) -> STTR:
    """Load a stereo network, on the CPU, in eval mode and float32.

    name_or_path: "tiny" or another name in `PRETRAINED`; a .safetensors file of `save_model`; a .ckpt, .pth or .pt file of our training; a
        folder of `StereoMatcher.save_pretrained`, or such a repository of the Hub, "hf-hub:OWNER/NAME".

    Raises:
        ValueError: an unknown name, or weights that do not fit.
        OSError: a file that is missing or cannot be read.
    """
    names = ["tiny", *(row.name for row in PRETRAINED.values() if row.task == "stereo")]
    row = find(name_or_path, "stereo") if isinstance(name_or_path, str) else None
    path = Path(name_or_path) if row is None else row.path
    if row is None and in_hub_or_folder(name_or_path):
        path = find_weights(name_or_path)
    if not path.exists():
        if path.suffix or path.parent != Path():
            raise FileNotFoundError(f"{path} does not exist, expected a file of weights or one of {', '.join(names)}")
        raise ValueError(
            f"unknown model {name_or_path!r}, expected one of {', '.join(names)}, or the path of a file of weights"
        )
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    if path.suffix not in (".ckpt", ".pth", ".pt"):
        raise ValueError(f"{path}: unknown suffix {path.suffix!r}, expected .safetensors, .ckpt, .pth or .pt")
    content = read_checkpoint(path)
    if not is_stereo(content):
        raise ValueError(f"{path} holds no stereo network, expected a checkpoint of StereoTask")
    weights = content["state_dict"].items()
    state = {key.removeprefix("model."): value for key, value in weights if key.startswith("model.")}
    return _build(content["config"], state, path)


def is_stereo(content: Any) -> bool:
    """Whether a checkpoint, as read, is of a stereo network of our training."""
    return (
        isinstance(content, Mapping) and content.get("model") == "STTR" and isinstance(content.get("config"), Mapping)
    )


def is_stereo_file(path: Path) -> bool:
    """Whether a file is such a checkpoint; False, too, for files that are missing or no checkpoints."""
    return path.is_file() and path.suffix == ".ckpt" and is_stereo(read_checkpoint(path))


def _load_safetensors(path: Path) -> STTR:
    safetensors = require("safetensors", "vision")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file, or is damaged: {' '.join(str(error).split())}") from None
    if metadata.get("model") != "STTR" or "config" not in metadata:
        raise ValueError(
            f"{path} has no configuration of a stereo network in its metadata, expected a file written by quadtree convert"
        )
    try:
        config = json.loads(metadata["config"])
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} has a damaged configuration in its metadata: {error}") from None
    return _build(config, state, path)


def _build(values: Mapping[str, Any], state: Mapping[str, Any], path: Path) -> STTR:
    unknown = set(values) - {field.name for field in fields(STTRConfig)}
    if unknown:
        raise ValueError(
            f"{path} has options that this version does not know: {', '.join(sorted(unknown))}; update quadtree-attention"
        )
    try:
        model = STTR(STTRConfig(**values))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} has a configuration that does not work: {error}") from None
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        problems = [line.strip() for line in str(error).splitlines()[1:]]
        raise ValueError(f"{path}: weights do not fit the model: {problems[0] if problems else error}") from None
    return model.eval()
