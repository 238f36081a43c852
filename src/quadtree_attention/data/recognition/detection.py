"""Images with boxes, and masks, for training and validation of detectors; augmented by torchvision's transforms v2."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...errors import InputError, check_range
from ...extras import require
from ..images import read_image
from ..loading import Augmented, EpochSampler, StreamLoader, loader_options
from .annotations import AnnotatedImage, Annotations, read_coco, read_voc

LAYOUTS = ("coco", "voc")
Target = dict[str, Tensor]


class DetectionDataset(Dataset):
    """Images and targets as the detectors take them.

    An item is an image float32 ``[3, H, W]`` in 0..1, and a dict of boxes float32 ``[N, 4]``, labels int64 ``[N]``, masks uint8 ``[N, H, W]`` if
    asked for, and for evaluation iscrowd, area ``[N]`` and image_id.

    Args:
        images: what there is.
        masks: whether to give them.
        transform: of torchvision's v2, for image and target; then objects that are crowds are left out, as are boxes that it cuts off.
    """

    def __init__(
        self, images: Sequence[AnnotatedImage], masks: bool, transform: Callable[..., Any] | None = None
    ) -> None:
        self.images, self.masks, self.transform = list(images), masks, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        tv = require("torchvision.tv_tensors", "detect")
        one = self.images[index]
        pixels = torch.from_numpy(read_image(one.path)).permute(2, 0, 1)
        if tuple(pixels.shape[1:]) != one.size:
            raise InputError(
                f"{one.path} has {pixels.shape[2]}x{pixels.shape[1]} pixels, expected {one.size[1]}x{one.size[0]} as in its annotations"
            )
        keep = ~one.crowd if self.transform is not None else slice(None)
        target = {
            "boxes": tv.BoundingBoxes(torch.from_numpy(one.boxes[keep]), format="XYXY", canvas_size=one.size),
            "labels": torch.from_numpy(one.labels[keep]),
        }
        if self.masks:
            target["masks"] = tv.Mask(torch.from_numpy(one.masks()[keep]))
        if self.transform is not None:
            image, target = self.transform(tv.Image(pixels), target)
            return image, target
        target = {name: value.as_subclass(torch.Tensor) for name, value in target.items()}
        crowd, areas = torch.from_numpy(one.crowd).long(), torch.from_numpy(one.areas)
        return pixels / 255, {**target, "iscrowd": crowd, "area": areas, "image_id": torch.tensor(one.image_id)}


class DetectionData(LightningDataModule):
    """Training, validation and test images with boxes, and masks.

    Args:
        root: the folder of the data.
        layout: "coco": images in SPLIT/, boxes and masks in annotations/instances_SPLIT.json; "voc": XML files in Annotations, images in
            JPEGImages, names in ImageSets/Main/SPLIT.txt (see `read_voc`).
        train_split, val_split, test_split: names of the splits.
        labels: names of the classes in their order, for all splits; by default those of the training split: of "coco" by their numbers in the
            file, of "voc" sorted. `DetectionTask` names its own.
        masks: whether the objects' masks are wanted; "coco" only.
        drop_bad: leave out entries that make no sense (no area, outside the image, unknown class, missing image, no outline where masks are
            wanted), with a warning; by default the first one ends the run.
        batch_size: images per device and step.
        num_workers: worker processes that read images; the result does not depend on their number.
        min_sizes, max_size: of training: the shorter side, drawn from these, and the most of the longer.
        crop: share of training images of which first a part is cut out, of 384 to 600 pixels a side after scaling to 400, 500 or 600 (DETR's
            and Sparse R-CNN's augmentation, which the 3x schedule has).
        hflip, vflip: probabilities of mirrored images.
        distort: probability of changed brightness, contrast, saturation and hue.
        zoom_out: probability of a smaller image on a larger canvas, up to twice its size.
        seed: of order and augmentation.
    """

    def __init__(
        self,
        root: str,
        layout: str = "coco",
        train_split: str = "train2017",
        val_split: str = "val2017",
        test_split: str = "val2017",
        labels: list[str] | None = None,
        masks: bool = False,
        drop_bad: bool = False,
        batch_size: int = 2,
        num_workers: int = 4,
        min_sizes: list[int] | None = None,
        max_size: int = 1333,
        crop: float = 0.0,
        hflip: float = 0.5,
        vflip: float = 0.0,
        distort: float = 0.0,
        zoom_out: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if layout not in LAYOUTS:
            raise InputError(f"layout is {layout!r}, expected {' or '.join(LAYOUTS)}")
        if masks and layout == "voc":
            raise InputError("masks are wanted of layout voc, which has boxes only; expected layout coco")
        for name, share in {
            "crop": crop,
            "hflip": hflip,
            "vflip": vflip,
            "distort": distort,
            "zoom_out": zoom_out,
        }.items():
            check_range(name, share, 0, 1)
        for side in (*(min_sizes or [1]), max_size):
            check_range("a side of min_sizes or max_size", side, 1)
        check_range("batch_size", batch_size, 1)
        self.save_hyperparameters()
        self._read: dict[str, Annotations] = {}
        self._labels = labels

    def use_labels(self, labels: Sequence[str]) -> None:
        """Number the classes of all splits as a network has them.

        Raises:
            ValueError: ``labels`` of the data are others.
        """
        asked = self.hparams["labels"]
        if asked is not None and list(asked) != list(labels):
            raise InputError(
                f"labels of the data are {', '.join(asked)}, but the detector has {', '.join(labels)}; "
                "expected the same in the same order, or none of the data"
            )
        if self._labels != list(labels):
            self._labels = list(labels)
            self._read.clear()

    def annotations(self, split: str) -> Annotations:
        """What the files say of a split, with the numbers that all splits share; read once.

        Raises:
            ValueError: as `read_coco` and `read_voc`; a class that is not among the labels.
            OSError: as those.
        """
        if split not in self._read:
            h, root = self.hparams, Path(self.hparams["root"]).expanduser()
            if not root.is_dir():
                raise FileNotFoundError(f"{root} does not exist, expected a folder with the data")
            labels = self._labels
            if labels is None and split != h["train_split"]:
                labels = self.class_names()
            if h["layout"] == "coco":
                path = root / "annotations" / f"instances_{split}.json"
                read = read_coco(path, root / split, drop=h["drop_bad"], masks=h["masks"])
                self._read[split] = read if labels is None else _renumbered(read, labels, path)
            else:
                self._read[split] = read_voc(root, split, labels, drop=h["drop_bad"])
        return self._read[split]

    def class_names(self) -> list[str]:
        """Names of the classes in their order."""
        return self._labels or self.annotations(self.hparams["train_split"]).labels

    def train_dataloader(self) -> DataLoader:
        """Augmented images that have a box, shuffled anew in each epoch."""
        h = self.hparams
        images = [one for one in self.annotations(h["train_split"]).images if not one.crowd.all()]
        if len(images) < h["batch_size"]:
            raise InputError(
                f"{h['root']} has {len(images)} images with boxes, expected at least a batch of {h['batch_size']}"
            )
        dataset = Augmented(DetectionDataset(images, h["masks"], self._transform()), h["seed"])
        return StreamLoader(dataset, sampler=EpochSampler(dataset, h["seed"]), drop_last=True, **self._options())

    def val_dataloader(self) -> DataLoader:
        """Images of ``val_split`` as they are."""
        return self._plain(self.hparams["val_split"])

    def test_dataloader(self) -> DataLoader:
        """Images of ``test_split`` as they are."""
        return self._plain(self.hparams["test_split"])

    def _plain(self, split: str) -> DataLoader:
        return DataLoader(DetectionDataset(self.annotations(split).images, self.hparams["masks"]), **self._options())

    def _transform(self) -> Callable[..., Any]:
        v2, h = require("torchvision.transforms.v2", "detect"), self.hparams
        steps: list[Any] = [v2.RandomHorizontalFlip(h["hflip"]), v2.RandomVerticalFlip(h["vflip"])]
        if h["zoom_out"]:
            fill = {require("torchvision.tv_tensors", "detect").Image: 124, "others": 0}
            steps.append(v2.RandomZoomOut(fill, side_range=(1.0, 2.0), p=h["zoom_out"]))
        sizes = h["min_sizes"] or [800]
        scale = v2.RandomShortestSize(sizes, max_size=h["max_size"])
        if h["crop"]:
            cut = v2.Compose(
                [v2.RandomShortestSize([400, 500, 600], max_size=h["max_size"]), part_crop(384, 600), scale]
            )
            scale = v2.RandomChoice([scale, cut], p=[1 - h["crop"], h["crop"]])
        steps.append(scale)
        if h["distort"]:
            steps.append(v2.RandomApply([v2.RandomPhotometricDistort(p=1.0)], h["distort"]))
        steps += [v2.SanitizeBoundingBoxes(), v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()]
        return v2.Compose(steps)

    def _options(self) -> dict[str, Any]:
        return {**loader_options(self.hparams["batch_size"], self.hparams["num_workers"]), "collate_fn": as_lists}


def _renumbered(read: Annotations, labels: Sequence[str], path: Path) -> Annotations:
    """The same with the numbers that classes have in ``labels``."""
    used = sorted({int(label) for image in read.images for label in image.labels})
    if unknown := [read.labels[label] for label in used if read.labels[label] not in labels]:
        raise InputError(
            f"{path}: class {', '.join(map(repr, unknown[:9]))} is unknown, expected some of {', '.join(labels[:9])}"
            f"{', ...' if len(labels) > 9 else ''}; set --model.options.labels"
        )
    numbers = np.array([labels.index(name) if name in labels else -1 for name in read.labels], np.int64)
    ids = dict(zip(read.labels, read.category_ids, strict=True))
    images = [replace(image, labels=numbers[image.labels]) for image in read.images]
    return Annotations(images, list(labels), [ids.get(name, 0) for name in labels])


def as_lists(batch: Sequence[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
    """Images of any sizes, and their targets, as the detectors take them."""
    images, targets = zip(*batch, strict=True)
    return list(images), list(targets)


def part_crop(low: int, high: int) -> Any:
    """A transform that cuts out a part of ``low`` to ``high`` pixels a side, or the whole side if it is shorter (mmdetection's "absolute_range")."""
    v2 = require("torchvision.transforms.v2", "detect")

    class PartCrop(v2.Transform):  # type: ignore[name-defined]  # torchvision is imported where it is used
        def make_params(self, flat_inputs: list[Any]) -> dict[str, int]:
            height, width = v2.functional.get_size(flat_inputs[0])
            sides = [int(torch.randint(min(low, side), min(high, side) + 1, ())) for side in (height, width)]
            top, left = (
                int(torch.randint(0, whole - side + 1, ())) for whole, side in zip((height, width), sides, strict=True)
            )
            return {"top": top, "left": left, "height": sides[0], "width": sides[1]}

        def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
            return v2.functional.crop(inpt, **params)

    return PartCrop()
