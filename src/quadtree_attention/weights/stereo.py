"""Weights of stereo networks: embedded ones, and files of our training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..models.sttr import STTR, STTRConfig
from .published import read_checkpoint
from .registry import located
from .storage import configuration, filled, read_safetensors, trained_weights


def load_stereo(name_or_path: str | Path) -> STTR:
    """Load a stereo network, on the CPU, in eval mode and float32.

    name_or_path: "tiny" or another name in `PRETRAINED`; a .safetensors file of `save_model`; a .ckpt, .pth or .pt file of our training; a
        folder of `StereoMatcher.save_pretrained`, or such a repository of the Hub, "hf-hub:OWNER/NAME".

    Raises:
        ValueError: an unknown name, or weights that do not fit.
        OSError: a file that is missing or cannot be read.
    """
    path, _ = located(name_or_path, "stereo")
    if path.suffix == ".safetensors":
        state, values = read_safetensors(path, "stereo network", lambda name: name == "STTR")
        return filled(STTR(configuration(STTRConfig, values, path)), state, path)
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
    return filled(STTR(configuration(STTRConfig, content["config"], path)), trained_weights(content), path)
