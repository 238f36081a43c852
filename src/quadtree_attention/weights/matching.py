"""Loading matchers: embedded, published, and of our own training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..models.loftr import LOFTR_PRESETS, LoFTR, LoFTRConfig
from .convert import convert_published
from .published import read_checkpoint, weights_in
from .registry import is_safetensors, located
from .storage import filled, read_safetensors, refuse_other, restored, shapes, trained_weights

_LOFTR = replace(LOFTR_PRESETS["outdoor"], attention="linear", block="loftr")

# Architectures that a checkpoint without one of its own can have. "loftr_old" is what LoFTR's first released weights need.
ARCHITECTURES: dict[str, LoFTRConfig] = {
    **LOFTR_PRESETS,
    "loftr": _LOFTR,
    "loftr_old": replace(_LOFTR, position="sine_bug"),
}


def load_matcher(
    name_or_path: str | Path, *, architecture: str | None = None, options: Mapping[str, Any] | None = None
) -> LoFTR:
    """Load a matcher, on the CPU, in eval mode and float32.

    Args:
        name_or_path: a name in `PRETRAINED`; a .safetensors file of `save_model`; a checkpoint, published or of our training; a
            folder of `Matcher.save_pretrained`, or such a repository of the Hub, "hf-hub:OWNER/NAME".
        architecture: a name in `ARCHITECTURES`, for published files by path alone; by default it is told from the weights and the file's name.
        options: fields of `LoFTRConfig` to change that the weights do not depend on, such as ``{"topk": (32, 16)}``: an earlier commit of
            the original had the topks of its indoor and outdoor model the other way round.

    Raises:
        ValueError: an unknown name or option, weights that do not fit, or an architecture or options that have no effect on the model.
        OSError: a file that is missing, or cannot be downloaded.
    """
    model = _load_matcher(name_or_path, architecture)
    if not options:
        return model
    if "topk" in options and not model.config.attention.startswith("quadtree"):
        raise InputError(f"{name_or_path} has {model.config.attention} attention, which has no topk; leave it out")
    try:
        config = replace(model.config, **options)
    except TypeError as error:
        raise InputError(f"options do not fit the model: {error}; see LoFTRConfig for what there is") from None
    return filled(LoFTR(config), model.state_dict(), name_or_path)


def _load_matcher(name_or_path: str | Path, architecture: str | None) -> LoFTR:
    path, row = located(name_or_path, "matching")
    if row is not None or is_safetensors(path):
        _refuse(architecture, name_or_path)
    if is_safetensors(path):
        state, values = read_safetensors(path, "matcher", lambda name: name == "LoFTR")
        return restored(LoFTRConfig, LoFTR, values, state, path)
    return matcher_from(read_checkpoint(path), path, architecture if row is None else row.name)


def _refuse(architecture: str | None, name_or_path: str | Path) -> None:
    if architecture is not None:
        raise InputError(
            f"architecture is {architecture!r}, expected none: {name_or_path} says its own; it is for published files alone"
        )


def matcher_from(content: Mapping[str, Any], path: Path, architecture: str | None = None) -> LoFTR:
    """The matcher of a checkpoint, as read from ``path``; the architecture as `load_matcher` has it.

    Raises:
        ValueError: an unknown architecture, or one that the checkpoint has no use for; weights that do not fit.
    """
    if architecture is not None and architecture not in ARCHITECTURES:
        raise InputError(f"unknown architecture {architecture!r}, expected one of {', '.join(ARCHITECTURES)}")
    refuse_other(content, path, "matcher")
    values = content.get("config")
    if isinstance(values, Mapping):  # of our own training
        _refuse(architecture, path)
        return restored(LoFTRConfig, LoFTR, values, trained_weights(content, path), path)
    try:
        state = weights_in(content)
        if not any(key.startswith("coarse.") for key in state):  # of ours
            state = convert_published(state)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    rest = {key: value for key, value in state.items() if key != "bin_score"}
    config = ARCHITECTURES[architecture or _told_from(rest, path)]
    if len(rest) < len(state):
        config = replace(config, matching="optimal_transport")
    return filled(LoFTR(config), state, path)


def _told_from(state: Mapping[str, Tensor], path: Path) -> str:
    """Name of the one architecture that the weights fit; the file's name decides between those that differ in options alone."""
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
            f"{path} fits {' and '.join(chosen)}, which differ in options that the file does not hold; "
            f"choose with: quadtree convert {path} OUT.safetensors --architecture {chosen[0]}"
        )
    return chosen[0]
