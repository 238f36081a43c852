"""Labelled images for training and validation of classifiers, read and augmented by timm."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule
from PIL import Image
from timm.data import create_dataset, create_transform
from timm.data.auto_augment import posterize
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ...errors import InputError, check_range
from ...extras import require
from ..images import IMAGENET_MEAN, IMAGENET_STD
from ..loading import Augmented, EpochSampler, StreamLoader, loader_options
from .masks import check_deviations

# What a split may also be called: by folders and .tar files, and by torchvision, which takes any other name for its test images.
SYNONYMS = (("train", "training"), ("validation", "val", "valid", "eval", "evaluation"))


class ClassificationData(LightningDataModule):
    """Training, validation and test images with one label each.

    Args:
        root: a folder with one folder a split, which has one folder a class; or the place of the ``dataset``. Hidden files and folders hold no
            images.
        dataset: "" for folders and for .tar files of such folders; else a name of timm's: "wds/NAME" for webdataset shards,
            "torch/fashion_mnist", "hfds/NAME", ...
        train_split, val_split, test_split: names of the splits; of a folder, "train" and "validation" also find what such folders are usually
            called; of .tar files, ``root/SPLIT.tar``; of shards, their names with braces, such as "train-{0000..0099}.tar". One that is not
            there ends the run.
        class_map: file with one class name a line, for all splits; images of other classes are left out. By default the sorted names of the
            folders of ``train_split`` number the classes of every split.
        num_samples: training and validation images of "wds/" datasets that have no _info.json.
        input_size: (channels, height, width) of the network's input.
        mean, std: of each channel, in 0..1.
        interpolation: "bicubic", "bilinear" or "random".
        crop_pct: of validation: the share of the shorter side that is seen.
        batch_size: images per device and step.
        num_workers: worker processes that read images; the result does not depend on their number.
        scale, ratio: range of areas and of aspect ratios of random crops.
        hflip: probability of a mirrored image.
        color_jitter, auto_augment: as timm's `create_transform`; auto_augment replaces colour jitter.
        re_prob, re_mode, re_count: random erasing.
        repeats: augmentations of an image in one batch or the neighbouring devices; an epoch has as many samples as with 1.
        seed: of order and augmentation.
    """

    def __init__(
        self,
        root: str,
        dataset: str = "",
        train_split: str = "train",
        val_split: str = "validation",
        test_split: str = "test",
        class_map: str = "",
        num_samples: tuple[int, int] | None = None,
        input_size: tuple[int, int, int] = (3, 224, 224),
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        interpolation: str = "bicubic",
        crop_pct: float = 0.9,
        batch_size: int = 128,
        num_workers: int = 4,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        hflip: float = 0.5,
        color_jitter: float = 0.4,
        auto_augment: str | None = "rand-m9-mstd0.5-inc1",
        re_prob: float = 0.25,
        re_mode: str = "pixel",
        re_count: int = 1,
        repeats: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if input_size[0] not in (1, 3) or min(input_size) < 1:
            raise InputError(f"input_size is {list(input_size)}, expected [1 or 3 channels, height, width]")
        if len(mean) != input_size[0] or len(std) != input_size[0]:
            raise InputError(
                f"mean and std have {len(mean)} and {len(std)} numbers, expected {input_size[0]}: one for each channel of input_size"
            )
        check_range("batch_size", batch_size, 1)
        check_range("repeats", repeats, 1)
        check_range("re_count", re_count, 1)
        check_range("seed", seed, 0)
        for name, share in (("hflip", hflip), ("re_prob", re_prob)):
            check_range(name, share, 0, 1)
        check_range("color_jitter", color_jitter, 0)
        check_range("crop_pct", crop_pct, 0.01, 100)
        if re_mode not in ("const", "rand", "pixel"):
            raise InputError(f"re_mode is {re_mode!r}, expected const, rand or pixel")
        if interpolation not in ("bicubic", "bilinear", "random"):
            raise InputError(f"interpolation is {interpolation!r}, expected bicubic, bilinear or random")
        check_deviations(std)
        for name, (low, high) in (("scale", scale), ("ratio", ratio)):
            if not 0 < low <= high or (name == "scale" and high > 1):
                raise InputError(
                    f"{name} is {[low, high]}, expected two numbers above 0{' and up to 1' * (name == 'scale')}, the lower one first"
                )
        self.save_hyperparameters()
        self._names: list[str] | None = None

    @property
    def preprocessing(self) -> dict[str, Any]:
        """How an image is prepared for the network, in the form of `ClassifierConfig`."""
        names = ("input_size", "mean", "std", "interpolation", "crop_pct")
        return {name: value for name, value in self.hparams.items() if name in names}

    def class_names(self) -> list[str] | None:
        """Names of the classes, ordered by number, if the dataset has any: those of the training images, whatever the split."""
        if self._names is None:  # reading them takes long where there are many files
            h = self.hparams
            split = h["train_split"]
            if h["class_map"] and not h["dataset"]:  # it numbers all splits alike, so that any one will do
                splits = (split, h["val_split"], h["test_split"])
                root = Path(h["root"]).expanduser()
                split = next((name for name in splits if _split_places(root, name)), split)
            self._names = _class_names(self._dataset(split, False, numbered=False))
        return self._names

    def train_dataloader(self) -> DataLoader:
        """Augmented images, shuffled anew in each epoch."""
        dataset = self._dataset(self.hparams["train_split"], True)
        self._names = _class_names(dataset)
        if isinstance(dataset, IterableDataset):
            return DataLoader(dataset, drop_last=True, **self._options())
        augmented = Augmented(dataset, self.hparams["seed"])
        sampler = EpochSampler(augmented, self.hparams["seed"], self.hparams["repeats"])
        if len(sampler) < self.hparams["batch_size"]:
            raise InputError(
                f"{self.hparams['root']} has {len(sampler)} training images a device, expected at least one batch of {self.hparams['batch_size']}"
            )
        return StreamLoader(augmented, sampler=sampler, drop_last=True, **self._options())

    def val_dataloader(self) -> DataLoader:
        """Images of ``val_split``, as they are, but for size."""
        return DataLoader(self._dataset(self.hparams["val_split"], False), **self._options())

    def test_dataloader(self) -> DataLoader:
        """Images of ``test_split``, as they are, but for size."""
        return DataLoader(self._dataset(self.hparams["test_split"], False), **self._options())

    def _dataset(self, split: str, training: bool, *, numbered: bool = True) -> Dataset:
        """Images of a split; not ``numbered``: with the numbers that its own folders have, as only those of training are."""
        h = self.hparams
        root, name = Path(h["root"]).expanduser(), h["dataset"]
        if not name:
            root = _find_split(root, split)
        elif name.startswith("torch/"):
            _check_torchvision(name, split)
        options = {}
        if name.startswith("wds/"):
            _check_shards(root, split)
            options = {
                "batch_size": h["batch_size"],
                "seed": h["seed"],
                "num_samples": h["num_samples"] and h["num_samples"][not training],
            }
        if not name.startswith("torch/"):
            options |= {"class_map": h["class_map"], "input_img_mode": "RGB" if h["input_size"][0] == 3 else "L"}
        try:
            dataset = create_dataset(name, str(root), split=split, search_split=False, is_training=training, **options)
        except tarfile.TarError as error:
            raise InputError(f"{root} cannot be read as a .tar file: {error}") from None
        except (RuntimeError, AssertionError, ValueError) as error:  # how timm and torchvision say what is missing
            raise InputError(f"no images of {split!r}: {error or 'unknown dataset'}") from None
        if not name:
            names = None
            if numbered and not h["class_map"] and split != h["train_split"]:
                names = self.class_names()
            _number(dataset.reader, names, root, keep=bool(h["class_map"]))
        dataset.transform = self._transform(training)
        return dataset

    def _transform(self, training: bool) -> Any:
        h = self.hparams
        common = {key: h[key] for key in ("mean", "std", "interpolation")}
        size = tuple(h["input_size"])
        if not training:
            return create_transform(size, crop_pct=h["crop_pct"], **common)
        names = ("scale", "ratio", "hflip", "color_jitter", "auto_augment", "re_prob", "re_mode", "re_count")
        try:
            transform = create_transform(size, is_training=True, **common, **{key: h[key] for key in names})
        except (
            AssertionError,
            KeyError,
            ValueError,
        ) as error:  # how timm says that it does not know a policy, or an option of one
            raise InputError(
                f"auto_augment is {h['auto_augment']!r}, expected one of timm's, such as rand-m9-mstd0.5-inc1: {error}"
            ) from None
        for part in transform.transforms:  # of RandAugment and AugMix, or of AutoAugment
            for op in (*getattr(part, "ops", ()), *chain.from_iterable(getattr(part, "policy", ()))):
                if op.aug_fn is posterize:
                    op.aug_fn = _posterize
        return transform

    def _options(self) -> dict[str, Any]:
        return loader_options(self.hparams["batch_size"], self.hparams["num_workers"])


def _posterize(image: Image.Image, bits_to_keep: int, **options: Any) -> Image.Image:
    """timm's, which asks Pillow for no bits at the highest magnitude: a black image, and an error since Pillow 13."""
    return posterize(image, bits_to_keep, **options) if bits_to_keep > 0 else Image.new(image.mode, image.size)


def _find_split(root: Path, split: str) -> Path:
    """The folder or .tar file of a split."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root} does not exist, expected a folder with one folder or .tar file for each split")
    if places := _split_places(root, split):
        return places[0]
    there = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
    raise InputError(
        f"{root} has no images of {split!r}, expected a folder {split} or a file {split}.tar; it has {', '.join(there[:9]) or 'nothing'}; "
        "set --data.train_split, --data.val_split or --data.test_split"
    )


def _split_places(root: Path, split: str) -> list[Path]:
    """Folders and .tar files that a split may be, as far as they are there; the one that is called so first."""
    others = next((names for names in SYNONYMS if split in names), ())
    places = [path for name in (split, *others) for path in (root / name, root / f"{name}.tar")]
    return [path for path in places if path.is_dir() or (path.suffix == ".tar" and path.is_file())]


def _check_torchvision(name: str, split: str) -> None:
    """Make sure that a data set of torchvision's has the split: timm takes any name that is not of training for the test images."""
    if name in ("torch/folder", "torch/image_folder"):
        raise InputError(
            f"dataset is {name!r}, whose splits number their classes apart; leave --data.dataset out for folders"
        )
    known = [*chain.from_iterable(SYNONYMS), "test"]
    if name in ("torch/inaturalist", "torch/inat", "torch/places365", "torch/imagenet"):
        return  # torchvision looks at their splits
    if split not in known:
        raise InputError(f"no images of {split!r} in {name}, expected a split of {', '.join(known)}")


def _check_shards(root: Path, split: str) -> None:
    """Make sure that all shards of a split are there, if they are files: webdataset passes over those that are not, with a line in the log."""
    if not root.is_dir() or "tar" not in split or "::" in split:
        return  # elsewhere, or named in the _info.json
    for name in require("webdataset.shardlists", "shards").expand_urls(split.partition("|")[0]):
        if not (root / name).is_file():
            raise FileNotFoundError(f"{root / name} does not exist, expected a shard of {split!r}")


def _number(reader: Any, names: Sequence[str] | None, place: Path, *, keep: bool) -> None:
    """Leave out hidden images of a reader of timm's, and give the others the numbers of their classes in ``names``.

    Args:
        reader: of folders or of a .tar file; it is changed.
        names: of the classes; by default those that the reader has found, without the hidden ones.
        place: that it reads.
        keep: the numbers as they are, since a class map gave them.
    """
    tar = hasattr(reader, "class_name_to_idx")
    found = reader.class_name_to_idx if tar else reader.class_to_idx
    paths = [sample[0].name for sample in reader.samples] if tar else [sample[0] for sample in reader.samples]
    targets = [int(n) for n in reader.targets] if tar else [sample[1] for sample in reader.samples]
    seen = [n for n, path in enumerate(paths) if not _hidden(path.removeprefix(str(place)))]
    if not seen:
        raise InputError(f"{place} has no images but hidden ones")
    numbers = dict(found)
    if not keep:
        used = {targets[n] for n in seen}
        here = [name for name in sorted(found, key=found.__getitem__) if found[name] in used]
        if "" in here:
            stray = next(paths[n] for n in seen if targets[n] == found[""])
            raise InputError(f"{stray} lies in no folder of a class, expected {place}/CLASS/{Path(stray).name}")
        names = here if names is None else names
        if unknown := [name for name in here if name not in names]:
            listed = ", ".join(map(repr, unknown[:9]))
            raise InputError(
                f"{place} has a class {listed} that the training images have not; expected some of {', '.join(names[:9])}"
                f"{', ...' if len(names) > 9 else ''}; move it away, or name the classes by --data.class_map"
            )
        numbers = {name: n for n, name in enumerate(names)}
    classes = {n: name for name, n in found.items()}
    renumbered = [numbers[classes[targets[n]]] for n in seen]
    if tar:
        reader.samples, reader.targets, reader.class_name_to_idx = reader.samples[seen], np.array(renumbered), numbers
    else:
        reader.samples = [(paths[n], number) for n, number in zip(seen, renumbered, strict=True)]
        reader.class_to_idx = numbers


def _hidden(path: str) -> bool:
    return any(part.startswith(".") and part not in (".", "..") for part in path.replace(os.sep, "/").split("/"))


def _class_names(dataset: Dataset) -> list[str] | None:
    for owner in (getattr(dataset, "reader", None), dataset):  # timm's of folders, timm's of tar files, torchvision's
        for name in ("class_to_idx", "class_name_to_idx"):
            if numbers := getattr(owner, name, None):
                return sorted(numbers, key=numbers.get)
    return None
