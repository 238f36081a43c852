"""The checkpoints published with the paper: names, addresses, and downloading."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.error import URLError

import torch

EMBEDDED = Path(__file__).parents[1] / "weights" / "embedded"  # weights that come with the package
_RELEASES = "https://github.com/Tangshitao/QuadTreeAttention/releases/download/"
_FEATURE_MATCH, _CLS = f"{_RELEASES}QuadTreeAttention_feature_match", f"{_RELEASES}QuadTreeAttention_cls"
_DETECTION, _MASK_RCNN = f"{_RELEASES}QuadTreeAttention_detection", f"{_RELEASES}QuadTreeAttention_maskrcnn"
_SEG = f"{_RELEASES}QuadTreeAttention_seg"


Task = Literal["matching", "stereo", "classification", "detection", "segmentation"]


@dataclass(frozen=True)
class Pretrained:
    """One row of the table of weights.

    task: what it is for; what: a description in one line; licence: of the weights; megabytes: size of the file, for downloads of the float32 weights
    alone; url: None if the weights come with the package.
    """

    name: str
    task: Task
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


PUBLISHED: dict[str, Pretrained] = {
    row.name: row
    for row in (
        Pretrained("indoor", "matching", "trained on ScanNet", "Apache-2.0", 50.8, f"{_FEATURE_MATCH}/indoor.ckpt"),
        Pretrained("outdoor", "matching", "trained on MegaDepth", "Apache-2.0", 50.8, f"{_FEATURE_MATCH}/outdoor.ckpt"),
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


def download(row: Pretrained) -> Path:
    """The file of published weights; downloaded to the torch hub folder if it is not there."""
    path, url = row.path, row.url
    if url is not None and not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            progress = logging.getLogger("quadtree_attention").isEnabledFor(logging.WARNING)
            torch.hub.download_url_to_file(url, str(path), progress=progress)  # under another name until it is whole
        except (URLError, OSError) as error:
            reason = getattr(error, "reason", None) or error
            raise OSError(f"cannot download {row.name} ({reason}); fetch {url} by hand and put it at {path}") from None
    return path
