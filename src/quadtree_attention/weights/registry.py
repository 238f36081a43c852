"""The table of weights that can be loaded by name: embedded ones and published checkpoints; and the file of a name or path."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import get_args

from ..errors import InputError
from ..models.checkpoint import WEIGHT_SUFFIXES, is_checkpoint, is_safetensors
from ..models.releases import PUBLISHED, Pretrained, Task, download
from .hub import PREFIX, WEIGHTS, find_weights, in_hub_or_folder

_EMBEDDED = (
    Pretrained("tiny", "matching", "any scene, small and fast", "MIT", 2.1),
    Pretrained("stereo_tiny", "stereo", "any scene, small and fast", "MIT", 1.5),
    Pretrained("classify_tiny", "classification", "ten kinds of clothes, 64x64 pixels, 1.3 M parameters", "MIT", 2.6),
    Pretrained("detect_tiny", "detection", "blood cells and platelets, 1.8 M parameters", "MIT", 3.6),
    Pretrained("segment_tiny", "segmentation", "garments pasted over photographs, 1.7 M parameters", "MIT", 3.5),
)
TASKS: tuple[Task, ...] = get_args(Task)
PRETRAINED: dict[str, Pretrained] = {
    row.name: row for task in TASKS for row in (*_EMBEDDED, *PUBLISHED.values()) if row.task == task
}


def find(name: str, task: str) -> Pretrained | None:
    """Find the weights with that name for a task; None if there are none. For every task, "tiny" are those that come with the package."""
    if name == "tiny":
        return next((row for row in PRETRAINED.values() if row.task == task and row.url is None), None)
    row = PRETRAINED.get(name)
    return row if row is not None and row.task == task else None


def weights_identity(name_or_path: str, task: str = "matching") -> str:
    """Identify the weights that results belong to: name and sha256 of the file, or the name if there is no file here.

    Weights that have not been downloaded yet have no file: load the model first.
    """
    row = find(name_or_path, task)
    if row is not None:
        path = row.path
    elif name_or_path.startswith(PREFIX):
        path = find_weights(name_or_path)
    else:
        path = Path(name_or_path)
        path = path / WEIGHTS if path.is_dir() else path
    return f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" if path.is_file() else name_or_path


def locate(name_or_path: str | Path, task: str) -> tuple[Path, Pretrained | None]:
    """Find the file of weights for a task, download it if necessary, and return it with its row in the table of weights, if it has one.

    Args:
        name_or_path: "tiny" or another name in `PRETRAINED`; a .safetensors file or a checkpoint; a folder of `HubMixin.save_pretrained`, or such a
            repository of the Hub, "hf-hub:OWNER/NAME".

    Raises:
        ValueError: an unknown name, one for another task, or an unknown suffix.
        OSError: a file that is missing, or cannot be downloaded.
    """
    name, path = str(name_or_path), Path(name_or_path)
    if (row := find(name, task)) is not None:
        return (row.path if row.url is None else download(row)), row
    names = ", ".join(names_for(task))
    if name in PRETRAINED:
        raise InputError(f"{name} is for {PRETRAINED[name].task}, expected {names}, or the path of a file of weights")
    if in_hub_or_folder(name_or_path):
        return find_weights(name_or_path), None
    if not path.exists():
        if path.suffix or path.parent != Path():
            raise FileNotFoundError(f"{path} does not exist, expected a file of weights or one of {names}")
        raise InputError(f"unknown model {name!r}, expected one of {names}, or the path of a file of weights")
    if not is_safetensors(path) and not is_checkpoint(path):
        raise InputError(f"{path}: unknown suffix {path.suffix!r}, expected {', '.join(WEIGHT_SUFFIXES)}")
    return path, None


def names_for(task: str) -> list[str]:
    """Names that `find` knows for a task."""
    rows = [row for row in PRETRAINED.values() if row.task == task]
    tiny = ["tiny"] if any(row.url is None for row in rows) else []
    return list(dict.fromkeys([*tiny, *(row.name for row in rows)]))
