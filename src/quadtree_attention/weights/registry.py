"""What can be loaded by name: embedded weights and published checkpoints; and where a name or a path leads."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.error import URLError

import torch

from ..errors import InputError
from .hub import PREFIX, WEIGHTS, find_weights, in_hub_or_folder

# Of files of torch.save's, "checkpoints" here; .bin is how older repositories of the Hub have them.
CHECKPOINT_SUFFIXES = (".ckpt", ".pth", ".pt", ".pth.tar", ".bin")
WEIGHT_SUFFIXES = (".safetensors", *CHECKPOINT_SUFFIXES)
EMBEDDED = Path(__file__).parent / "embedded"
_RELEASES = "https://github.com/Tangshitao/QuadTreeAttention/releases/download/"
_FEATURE_MATCH, _CLS = f"{_RELEASES}QuadTreeAttention_feature_match", f"{_RELEASES}QuadTreeAttention_cls"
_DETECTION, _MASK_RCNN = f"{_RELEASES}QuadTreeAttention_detection", f"{_RELEASES}QuadTreeAttention_maskrcnn"
_SEG = f"{_RELEASES}QuadTreeAttention_seg"


@dataclass(frozen=True)
class Pretrained:
    """One row of the table of weights.

    task: what it is for; what: one line; licence: of the weights; megabytes: size of the file, of a download by its float32 weights alone;
    url: None if the weights come with the package.
    """

    name: str
    task: Literal["matching", "stereo", "classification", "detection", "segmentation"]
    what: str
    licence: str
    megabytes: float
    url: str | None = None

    @property
    def source(self) -> str:
        """Where the weights come from, in words."""
        return "in the package" if self.url is None else self.url

    @property
    def path(self) -> Path:
        """Where the weights are on this machine, or will be once they are downloaded."""
        if self.url is None:
            return EMBEDDED / f"{self.name}.safetensors"
        suffix = Path(self.url).suffix
        return Path(torch.hub.get_dir()) / "checkpoints" / "quadtree_attention" / f"{self.name}{suffix}"

    @property
    def card(self) -> Path | None:
        """Data, recipe and measured results of embedded weights."""
        return EMBEDDED / f"{self.name}.md" if self.url is None else None


PRETRAINED: dict[str, Pretrained] = {
    row.name: row
    for row in (
        Pretrained("tiny", "matching", "any scene, small and fast", "MIT", 2.1),
        Pretrained("indoor", "matching", "trained on ScanNet", "Apache-2.0", 50.8, f"{_FEATURE_MATCH}/indoor.ckpt"),
        Pretrained("outdoor", "matching", "trained on MegaDepth", "Apache-2.0", 50.8, f"{_FEATURE_MATCH}/outdoor.ckpt"),
        Pretrained("stereo_tiny", "stereo", "any scene, small and fast", "MIT", 1.5),
        Pretrained(
            "classify_tiny", "classification", "ten kinds of clothes, 64x64 pixels, 1.3 M parameters", "MIT", 2.6
        ),
        *(
            Pretrained(
                f"quadtree_b{n}",
                "classification",
                f"ImageNet-1K, {figures} multiply-adds",
                "MIT",
                size,
                f"{_CLS}/b{n}.pth",
            )
            for n, (figures, size) in enumerate(
                (
                    ("top-1 72.0 %, 3.6 M parameters, 0.6 G", 14.4),
                    ("top-1 80.0 %, 13.7 M parameters, 2.3 G", 54.6),
                    ("top-1 82.7 %, 25.1 M parameters, 4.5 G", 100.3),
                    ("top-1 83.8 %, 46.3 M parameters, 7.8 G", 185.1),
                    ("top-1 84.0 %, 64.2 M parameters, 11.4 G", 256.8),
                )
            )
        ),
        Pretrained("detect_tiny", "detection", "blood cells and platelets, 1.8 M parameters", "MIT", 3.6),
        *(
            Pretrained(f"retinanet_quadtree_b{n}", "detection", f"COCO, AP {ap}", "MIT", size, f"{_DETECTION}/b{n}.pth")
            for n, (ap, size) in enumerate(((38.4, 51.5), (42.6, 93.6), (46.2, 139.2), (47.3, 224.0), (47.9, 295.7)))
        ),
        *(
            Pretrained(
                f"mask_rcnn_quadtree_b{n}_1x",
                "detection",
                f"COCO, AP {box} of boxes, {mask} of masks",
                "MIT",
                size,
                f"{_MASK_RCNN}/b{n}_1x.pth",
            )
            for n, (box, mask, size) in enumerate(
                (
                    (38.8, 36.5, 93.5),
                    (43.5, 40.1, 133.2),
                    (46.7, 42.4, 178.9),
                    (48.3, 43.3, 263.7),
                    (48.6, 43.6, 335.4),
                )
            )
        ),
        Pretrained("segment_tiny", "segmentation", "garments pasted over photographs, 1.7 M parameters", "MIT", 3.5),
        *(
            Pretrained(
                f"semantic_fpn_quadtree_b{n}",
                "segmentation",
                f"ADE20K, 150 classes, mIoU {miou}",
                "MIT",
                megabytes,
                f"{_SEG}/b{n}.pth",
            )
            for n, (miou, megabytes) in enumerate(
                ((39.9, 29.9), (44.7, 69.6), (48.7, 115.3), (50.0, 200.1), (50.6, 271.8))
            )
        ),
    )
}


def is_safetensors(path: Path) -> bool:
    """Whether it is named as a .safetensors file."""
    return path.name.lower().endswith(".safetensors")


def is_checkpoint(path: Path) -> bool:
    """Whether it is named as a checkpoint of torch.save's."""
    return path.name.lower().endswith(CHECKPOINT_SUFFIXES)


def find(name: str, task: str) -> Pretrained | None:
    """The weights of that name for a task, if there are any; "tiny" are those that come with the package, for every task."""
    if name == "tiny":
        return next((row for row in PRETRAINED.values() if row.task == task and row.url is None), None)
    row = PRETRAINED.get(name)
    return row if row is not None and row.task == task else None


def weights_identity(name_or_path: str, task: str = "matching") -> str:
    """What must be the same for results of a model to go together: name and sha256 of its file of weights, or its name where there is no file here.

    Weights that are to be downloaded have no file before that: load the model first.
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


def downloaded(row: Pretrained) -> Path:
    """The file of published weights; downloaded to the torch hub folder if it is not there."""
    path, url = row.path, row.url
    if url is not None and not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path))  # under another name until it is whole
        except (URLError, OSError) as error:
            reason = getattr(error, "reason", None) or error
            raise OSError(f"cannot download {row.name} ({reason}); fetch {url} by hand and put it at {path}") from None
    return path


def located(name_or_path: str | Path, task: str) -> tuple[Path, Pretrained | None]:
    """The file of weights for a task, there for sure, and its row in the table of weights if it has one.

    Args:
        name_or_path: "tiny" or another name in `PRETRAINED`, which is downloaded if it has to be; a .safetensors file or a checkpoint; a folder
            of `HubMixin.save_pretrained`, or such a repository of the Hub, "hf-hub:OWNER/NAME".

    Raises:
        ValueError: an unknown name, one for another task, or an unknown suffix.
        OSError: a file that is missing, or cannot be downloaded.
    """
    name, path = str(name_or_path), Path(name_or_path)
    if (row := find(name, task)) is not None:
        return (row.path if row.url is None else downloaded(row)), row
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
