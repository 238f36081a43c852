"""The file format of networks.

A .safetensors file holds the weights, and in its metadata "kind" (a name in `KINDS`), "version" (of this format) and "config" (the
configuration as JSON). A checkpoint of our training holds the same three under "quadtree_attention", beside its weights. So nothing is
guessed. Version 1, which can still be read, had the class of the network instead of the kind, and the configurations of classifiers and detectors
one level deeper.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import InputError
from ..extras import require
from ..files import atomic_write, checked_suffix
from ..models.checkpoint import is_safetensors, read_checkpoint, weights_in
from .kinds import KINDS, kind_of

VERSION = 2
ENTRY = "quadtree_attention"  # of a checkpoint
_LONGEST_CONFIG = 10_000_000  # characters: some hundred thousand names of classes
_CLASSES = {  # of version 1: class of the network -> kind
    "LoFTR": "matcher",
    "STTR": "stereo",
    "SemanticFPN": "segmenter",
    "RetinaNet": "detector",
    "MaskRCNN": "detector",
}


@dataclass(frozen=True)
class Stored:
    """The contents of a file.

    kind, config: as stored in the file; None in published checkpoints, which store neither. content: the weights if the kind is known, else
    everything in the file.
    """

    path: Path
    kind: str | None
    config: Any
    content: Mapping[str, Any]


def description(config: Any) -> dict[str, Any]:
    """Kind, version and configuration of a network, in the form that checkpoints have under `ENTRY`."""
    return {"kind": kind_of(config).name, "version": VERSION, "config": asdict(config)}


def save(model: nn.Module, path: str | Path, *, half: bool = False) -> None:
    """Write a network, its kind and its configuration, ``model.config``, to a .safetensors file, whole or not at all.

    half: store parameters as float16.

    Raises:
        ValueError: another suffix, or parameters that float16 cannot hold.
    """
    checked_suffix(path, (".safetensors",))
    parameters = {name for name, _ in model.named_parameters()}
    tensors = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu().contiguous()
        if half and name in parameters:
            tensor = tensor.half()
            if not tensor.isfinite().all():
                raise InputError(f"{name} has values that float16 cannot hold; save it without half")
        tensors[name] = tensor
    said = description(model.config)
    metadata = {"format": "pt", **said, "version": str(said["version"]), "config": json.dumps(said["config"])}
    content = require("safetensors.torch", "vision").save(tensors, metadata)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def read(path: Path) -> Stored:
    """Read a .safetensors file or a checkpoint, with the kind and configuration that it stores.

    Raises:
        OSError: there is no such file.
        ValueError: it is damaged, or of a later version of this format.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; is the package installed whole?")
    content = read_checkpoint(path)
    if is_safetensors(path):
        metadata = read_metadata(path)
        if "config" not in metadata:
            return Stored(path, None, None, content)
        return Stored(path, *_kind_and_config(metadata, _parsed(metadata["config"], path), path), content)
    kind, config = described(content, path)
    return Stored(path, kind, config, content if kind is None else _trained(content, path))


def described(content: Mapping[str, Any], path: Path) -> tuple[str | None, Any]:
    """Kind and configuration of a checkpoint of our training, as read from ``path``; both None if it is not one.

    Raises:
        ValueError: it is of a later version of this format.
    """
    said = content.get(ENTRY)
    return (
        _kind_and_config(said, said.get("config"), path) if isinstance(said, Mapping) else _kind_of_version_1(content)
    )


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a .safetensors file; empty if it is damaged."""
    safetensors = require("safetensors", "vision")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except safetensors.SafetensorError:
        return {}


def _kind_and_config(metadata: Mapping[str, Any], config: Any, path: Path) -> tuple[str, Any]:
    """Kind and configuration from the metadata."""
    version = str(metadata.get("version", 1))
    if not version.isdecimal() or len(version) > 9:
        raise InputError(f"{path} has a damaged version in its metadata: {version[:40]!r}, expected a number")
    if int(version) > VERSION:
        raise InputError(f"{path} was written by a later version of quadtree-attention; update the package")
    if "kind" in metadata:
        kind = metadata["kind"]
        if not isinstance(kind, str) or kind not in KINDS:
            raise InputError(f"{path} is of kind {str(kind)[:40]!r}, expected one of {', '.join(KINDS)}")
        return kind, config
    kind = _CLASSES.get(str(metadata.get("model", "")), "classifier")
    inner = config.get(kind, config) if kind in ("classifier", "detector") and isinstance(config, Mapping) else config
    if kind == "classifier" and inner is config:
        raise InputError(f"{path} has no kind in its metadata, expected a file written by quadtree convert")
    return _with_head(kind, inner), inner


def _kind_of_version_1(content: Mapping[str, Any]) -> tuple[str | None, Any]:
    """Kind and configuration of a checkpoint of version 1; both None if it is not of our training."""
    for kind in ("detector", "segmenter", "classifier"):
        if isinstance(content.get(kind), Mapping):
            return _with_head(kind, content[kind]), content[kind]
    if isinstance(content.get("config"), Mapping):
        return "stereo" if content.get("model") == "STTR" else "matcher", content["config"]
    return None, None


def _with_head(kind: str, config: Any) -> str:
    return "backbone" if kind == "classifier" and isinstance(config, Mapping) and not config.get("labels") else kind


def _parsed(text: str, path: Path) -> dict[str, Any]:
    if len(text) > _LONGEST_CONFIG:
        raise InputError(
            f"{path} has a configuration of {len(text)} characters, expected {_LONGEST_CONFIG} at the very most"
        )
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:  # no JSON, or a number with too many digits; nested too deeply
        raise InputError(f"{path} has a damaged configuration in its metadata: {error}") from None
    if not isinstance(config, dict):
        raise InputError(f"{path} has a {type(config).__name__} as configuration, expected names with values")
    return config


def _trained(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Weights of the network in a checkpoint of our training."""
    prefix = "model."
    try:
        state = weights_in(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
