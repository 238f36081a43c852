"""Training and validation of segmenters: ADE20K, and plain folders of images and masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from ...errors import InputError, check_range
from ..images import IMAGENET_MEAN, IMAGENET_STD
from ..lists import lines_in
from ..loading import Augmented, EpochSampler, StreamLoader, loader_options
from .ade20k import ADE20K_LABELS, IGNORE
from .masks import SegmentationFolder, check_deviations, check_sides, collate_lists, preprocess

LAYOUTS = {  # of a split: folder of images, folder of masks
    "ade20k": ("images/{}", "annotations/{}"),
    "folders": ("{}/images", "{}/masks"),
}
SPLITS = {"ade20k": ("training", "validation", "validation"), "folders": ("train", "validation", "test")}


class RandomRescale(v2.Transform):
    """Scale an image and its mask to the largest size that exceeds neither ``long_side`` nor ``short_side``, both times a random ratio."""

    def __init__(self, long_side: int, short_side: int, ratio: tuple[float, float]) -> None:
        super().__init__()
        self.sides, self.ratio = (long_side, short_side), ratio

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = TF.get_size(flat_inputs[0])
        ratio = float(torch.empty(()).uniform_(*self.ratio))
        long_side, short_side = (int(side * ratio) for side in self.sides)
        factor = min(long_side / max(height, width), short_side / min(height, width))
        return {"size": [max(1, int(side * factor + 0.5)) for side in (height, width)]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return TF.resize(inpt, params["size"], antialias=False)  # bilinear; of masks, the nearest


class VariedCrop(v2.Transform):
    """A random crop of at most ``size`` in which no class has more than ``most`` of the pixels that have one, if ten draws find such a crop."""

    def __init__(self, size: tuple[int, int], most: float = 0.75) -> None:
        super().__init__()
        self.size, self.most = size, most

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        mask = next(x for x in flat_inputs if isinstance(x, tv_tensors.Mask))
        sides = [(whole, min(side, whole)) for side, whole in zip(self.size, mask.shape[-2:], strict=True)]
        for _ in range(10):
            top, left = (int(torch.randint(whole - side + 1, ())) for whole, side in sides)
            part = mask[..., top : top + sides[0][1], left : left + sides[1][1]]
            counts = torch.bincount(part[part != IGNORE].flatten().long())
            if (counts > 0).sum() > 1 and counts.max() < self.most * counts.sum():
                break
        return {"top": top, "left": left, "height": sides[0][1], "width": sides[1][1]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return TF.crop(inpt, **params)


class PadTo(v2.Transform):
    """Pad to ``size`` at the right and the bottom: images with 0, masks with 255."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = TF.get_size(flat_inputs[0])
        return {"padding": [0, 0, max(self.size[1] - width, 0), max(self.size[0] - height, 0)]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return TF.pad(inpt, params["padding"], fill=IGNORE if isinstance(inpt, tv_tensors.Mask) else 0)


class SegmentationData(LightningDataModule):
    """Training, validation and test images with a mask each.

    Training as published: a random size, a crop in which no class has more than 75 %, mirrored or not, colours distorted; what is smaller
    than the crop is padded with the mean colour and no class. Validation and test: the whole image at one size, judged at its own.

    Args:
        root: folder of the data.
        layout: "ade20k" (images/training/*.jpg, annotations/training/*.png, ...); or "folders": train/images, train/masks and the like for
            validation and test, with the names of the classes in classes.txt, one per line, number 0 first.
        splits: names of the training, validation and test folders, where they are others.
        reduce_zero_label: 0 in masks is no class; None: as the layout has it.
        crop_size: (height, width) of what is trained on.
        long_side, short_side, divisor: of validation, see `SegmenterConfig`; the former two, times a ratio, of training.
        ratio: range of random sizes.
        most: the largest share of one class in a crop.
        hflip: probability of a mirrored image.
        distort: whether brightness, contrast, saturation and hue are changed, each with probability 1/2.
        mean, std: of each channel, in 0..1.
        batch_size: images per device and step; val_batch_size: of validation, where images of one size run together.
        num_workers: worker processes that read images; the result does not depend on their number.
        seed: of order and augmentation.
    """

    def __init__(
        self,
        root: str,
        layout: str = "ade20k",
        splits: tuple[str, str, str] | None = None,
        reduce_zero_label: bool | None = None,
        crop_size: tuple[int, int] = (512, 512),
        long_side: int = 2048,
        short_side: int = 512,
        divisor: int = 32,
        ratio: tuple[float, float] = (0.5, 2.0),
        most: float = 0.75,
        hflip: float = 0.5,
        distort: bool = True,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        batch_size: int = 16,
        val_batch_size: int = 1,
        num_workers: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if layout not in LAYOUTS:
            raise InputError(f"layout is {layout!r}, expected one of {', '.join(LAYOUTS)}")
        check_sides(long_side, short_side, divisor)
        check_deviations(std)
        check_range("the shorter side of crop_size", min(crop_size), 1)
        check_range("most", most, 0, 1, above=True)
        check_range("hflip", hflip, 0, 1)
        if not 0 < ratio[0] <= ratio[1]:
            raise InputError(f"ratio is {list(ratio)}, expected two numbers above 0, the lower one first")
        self.save_hyperparameters()
        self.splits = splits or SPLITS[layout]

    @property
    def preprocessing(self) -> dict[str, Any]:
        """How an image is prepared for the network, in the form of `SegmenterConfig`."""
        names = ("mean", "std", "long_side", "short_side", "divisor")
        return {name: value for name, value in self.hparams.items() if name in names}

    def class_names(self) -> list[str]:
        """Names of the classes, ordered by number."""
        if self.hparams["layout"] == "ade20k":
            return list(ADE20K_LABELS)
        path = Path(self.hparams["root"]).expanduser() / "classes.txt"
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist, expected the names of the classes, one per line")
        names = [line.strip() for line in lines_in(path) if line.strip()]
        if not 1 <= len(names) <= IGNORE:
            raise InputError(f"{path} has {len(names)} names, expected 1 to {IGNORE}, one per line")
        return names

    def train_dataloader(self) -> DataLoader:
        """Augmented images ``[B, 3, H, W]`` and masks int64 ``[B, H, W]``, shuffled anew in each epoch."""
        dataset = Augmented(_Transformed(self._folder(0), self._augmentation()), self.hparams["seed"])
        sampler = EpochSampler(dataset, self.hparams["seed"])
        if len(sampler) < self.hparams["batch_size"]:
            raise InputError(
                f"{self.hparams['root']} has {len(sampler)} training images a device, expected at least one batch of {self.hparams['batch_size']}"
            )
        options = loader_options(self.hparams["batch_size"], self.hparams["num_workers"])
        return StreamLoader(dataset, sampler=sampler, drop_last=True, **options)

    def val_dataloader(self) -> DataLoader:
        """Lists of images ``[3, h, w]`` as the network sees them, and of masks int64 ``[H, W]`` of the size they have in the files."""
        return self._whole(1)

    def test_dataloader(self) -> DataLoader:
        """The same as `val_dataloader`, for the test split."""
        return self._whole(2)

    def _whole(self, split: int) -> DataLoader:
        steps = self.preprocessing
        dataset = _Transformed(
            self._folder(split), lambda image, mask: (preprocess(image, **steps), torch.from_numpy(mask).long())
        )
        options = loader_options(self.hparams["val_batch_size"], self.hparams["num_workers"])
        return DataLoader(dataset, collate_fn=collate_lists, **options)

    def _folder(self, split: int) -> SegmentationFolder:
        h = self.hparams
        root, name = Path(h["root"]).expanduser(), self.splits[split]
        images, masks = (root / place.format(name) for place in LAYOUTS[h["layout"]])
        reduce = h["reduce_zero_label"]
        return SegmentationFolder(
            images,
            masks,
            len(self.class_names()),
            reduce_zero_label=h["layout"] == "ade20k" if reduce is None else reduce,
        )

    def _augmentation(self) -> _Augmentation:
        h = self.hparams
        steps: list[v2.Transform] = [
            RandomRescale(h["long_side"], h["short_side"], h["ratio"]),
            VariedCrop(h["crop_size"], h["most"]),
            v2.RandomHorizontalFlip(h["hflip"]),
        ]
        if h["distort"]:
            steps.append(v2.RandomPhotometricDistort(hue=(-0.1, 0.1)))
        steps += [
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
            v2.Normalize(h["mean"], h["std"]),
            PadTo(h["crop_size"]),
        ]
        return _Augmentation(v2.Compose(steps))


class _Augmentation:
    """Transforms of torchvision's v2 on an image and a mask of numpy's."""

    def __init__(self, steps: v2.Transform) -> None:
        self.steps = steps

    def __call__(self, image: np.ndarray, mask: np.ndarray) -> tuple[Tensor, Tensor]:
        changed, labels = self.steps(
            tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)), tv_tensors.Mask(torch.from_numpy(mask))
        )
        return changed.as_subclass(Tensor), labels.as_subclass(Tensor).long()


class _Transformed(Dataset):
    def __init__(self, dataset: SegmentationFolder, transform: Any) -> None:
        self.dataset, self.transform = dataset, transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.transform(*self.dataset[index])
