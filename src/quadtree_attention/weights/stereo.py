"""Weights of stereo networks: embedded ones, and files of our training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..models.sttr import STTR, STTRConfig
from .published import read_checkpoint
from .registry import is_safetensors, located
from .storage import read_safetensors, restored, trained_weights


def load_stereo(name_or_path: str | Path) -> STTR:
    """Load a stereo network, on the CPU, in eval mode and float32.

    name_or_path: "tiny" or another name in `PRETRAINED`; a .safetensors file of `save_model`; a checkpoint of our training; a
        folder of `StereoMatcher.save_pretrained`, or such a repository of the Hub, "hf-hub:OWNER/NAME".

    Raises:
        ValueError: an unknown name, or weights that do not fit.
        OSError: a file that is missing or cannot be read.
    """
    path, _ = located(name_or_path, "stereo")
    if is_safetensors(path):
        state, values = read_safetensors(path, "stereo network", lambda name: name == "STTR")
        return restored(STTRConfig, STTR, values, state, path)
    return stereo_from(read_checkpoint(path), path)


def is_stereo(content: Mapping[str, Any]) -> bool:
    """Whether a checkpoint, as read, is of a stereo network of our training."""
    return content.get("model") == "STTR" and isinstance(content.get("config"), Mapping)


def stereo_from(content: Mapping[str, Any], path: Path) -> STTR:
    """The stereo network of a checkpoint, as read from ``path``.

    Raises:
        ValueError: anything else, or weights that do not fit.
    """
    if not is_stereo(content):
        raise InputError(f"{path} holds no stereo network, expected a checkpoint of StereoTask")
    return restored(STTRConfig, STTR, content["config"], trained_weights(content, path), path)
