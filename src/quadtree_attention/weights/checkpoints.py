"""What a checkpoint is of, told from what it holds; and its network, with all that is needed, in a file of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import InputError
from .classification import classifier_from, is_classifier, save_classifier
from .detection import detector_from, is_detector, save_detector
from .matching import load_matcher, matcher_from
from .published import read_checkpoint
from .registry import is_checkpoint
from .segmentation import is_segmenter, segmenter_from
from .stereo import is_stereo, stereo_from
from .storage import save_model


def task_of(content: Mapping[str, Any]) -> str:
    """What a checkpoint, as read, is for; "matching" if it is none of the other tasks."""
    kinds = {  # in this order: a detector or segmenter has a classifier's backbone
        "stereo": is_stereo,
        "detection": is_detector,
        "segmentation": is_segmenter,
        "classification": is_classifier,
    }
    return next((task for task, fits in kinds.items() if fits(content)), "matching")


def convert_checkpoint(
    source: str | Path, path: str | Path, *, architecture: str | None = None, half: bool = False
) -> nn.Module:
    """Write the network of a checkpoint, published or of our training, to a .safetensors file that holds its configuration too.

    Args:
        source: a checkpoint; or anything else that `load_matcher` takes.
        path: the file to write, whole or not at all.
        architecture: of a published matcher, where its weights leave a choice; see `load_matcher`.
        half: store parameters as float16.

    Returns:
        the network.

    Raises:
        ValueError: weights that do not fit; an architecture for what says its own; parameters that float16 cannot hold.
        OSError: a file that is missing, cannot be downloaded or cannot be written.
    """
    source = Path(source)
    if not is_checkpoint(source) or not source.is_file():
        matcher = load_matcher(source, architecture=architecture)
        save_model(matcher, path, half=half)
        return matcher
    content = read_checkpoint(source)
    task = task_of(content)
    if architecture is not None and task != "matching":
        raise InputError(
            f"architecture is {architecture!r}, expected none: {source} is for {task}; it is for published matchers alone"
        )
    if task == "detection":
        detector = detector_from(content, source)
        save_detector(detector, path, half=half)
        return detector
    if task == "classification":
        classifier = classifier_from(content, source)
        save_classifier(classifier, path, half=half)
        return classifier
    model: nn.Module
    if task == "stereo":
        model = stereo_from(content, source)
    elif task == "segmentation":
        model = segmenter_from(content, source)
    else:
        model = matcher_from(content, source, architecture)
    save_model(model, path, half=half)
    return model
