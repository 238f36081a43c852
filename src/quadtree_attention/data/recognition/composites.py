"""Cut-outs pasted over photographs: images whose masks are known exactly, from a folder of cut-outs with one folder a class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...errors import InputError, check_range
from ...files import list_photographs
from ..decoding import as_mode, decode, opened
from ..images import IMAGENET_MEAN, IMAGENET_STD
from ..loading import SeededDataset, StreamLoader, loader_options, stream_loader
from ..photos import Photographs
from .ade20k import IGNORE
from .masks import check_deviations, collate_lists, normalised

LARGEST = 128  # pixels of the longer side of cut-outs, and twice that of the shorter side of photographs, as they are kept in memory


@dataclass(frozen=True)
class Pasting:
    """What happens to cut-outs and photographs; all of it is drawn for each image and cut-out.

    count: fewest and most cut-outs in an image. scale: their longer side, as a share of the image's shorter one. turn: degrees either way.
    tint: how far their colours are changed, 0..1; light: exponent of their brightness, a ratio either way; noise: standard deviation of the
    image's, of 0..255. zoom: the smallest share of a photograph's shorter side that is seen.
    """

    count: tuple[int, int] = (1, 4)
    scale: tuple[float, float] = (0.25, 0.7)
    turn: float = 20.0
    tint: float = 0.0
    light: float = 1.5
    noise: float = 6.0
    zoom: float = 0.4

    def __post_init__(self) -> None:
        """Raises a ValueError for what cannot be drawn."""
        for name, least in (("count", 0), ("scale", 0.01)):
            low, high = getattr(self, name)
            if not least <= low <= high:
                raise InputError(f"{name} is {[low, high]}, expected two numbers from {least} up, the lower one first")
        check_range("tint", self.tint, 0, 1)
        check_range("light", self.light, 0, above=True)
        check_range("noise", self.noise, 0)
        check_range("zoom", self.zoom, 0.01, 1)


class CompositeDataset(SeededDataset):
    """Images of ``size`` (height, width) and their masks: 0 the photograph, 1 and up the classes; sample n of a seed is always the same.

    Args:
        cutouts: folder with one folder a class (sorted: class 1, 2, ...), each with images that have an alpha channel.
        photos: folder of photographs. Broken files are skipped with a warning.
        size: (height, width).
        length: samples per epoch.
        seed: of all random choices.
        pasting: how.
        labels: "background" and names of classes, which number them, such as those of the training cut-outs; by default those of the folders.

    Raises:
        ValueError, OSError: folders that are missing, hold nothing fitting or are of an unknown class, images without alpha.
    """

    def __init__(
        self,
        cutouts: str | Path,
        photos: str | Path,
        size: tuple[int, int],
        length: int,
        seed: int = 0,
        pasting: Pasting = Pasting(),
        labels: list[str] | None = None,
    ) -> None:
        super().__init__(length, seed)
        here = class_names(cutouts)
        self.labels = here if labels is None else labels
        if unknown := [name for name in here if name not in self.labels]:
            raise InputError(
                f"{cutouts} has a class {', '.join(map(repr, unknown))} that the training cut-outs have not, "
                f"expected some of {', '.join(self.labels[1:])}"
            )
        self.size, self.pasting = (size[0], size[1]), pasting
        self.cutouts = [
            [read_cutout(path) for path in list_photographs(Path(cutouts) / name)] if name in here else []
            for name in self.labels[1:]
        ]
        self._present = [label for label, name in enumerate(self.labels) if label and name in here]
        self.photos = Photographs(list_photographs(photos))

    def sample(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image ``[H, W, 3]`` uint8 and mask ``[H, W]`` uint8."""
        rng, p = np.random.default_rng([self.seed, index]), self.pasting
        image = self._background(rng)
        mask = np.zeros(self.size, np.uint8)
        for _ in range(rng.integers(p.count[0], p.count[1] + 1)):
            label = self._present[rng.integers(len(self._present))]
            group = self.cutouts[label - 1]
            _paste(rng, group[rng.integers(len(group))], image, mask, label, p)
        image += rng.uniform(0, p.noise) * rng.standard_normal(image.shape, np.float32)
        return np.rint(image.clip(0, 255)).astype(np.uint8), mask

    def _background(self, rng: np.random.Generator) -> np.ndarray:
        """A random part of a photograph, float32."""
        photo = _small(self.photos.draw(rng), 2 * LARGEST)
        height, width = photo.shape[:2]
        factor = rng.uniform(self.pasting.zoom, 1) * min(height / self.size[0], width / self.size[1])
        part = [max(1, int(side * factor)) for side in self.size]
        top, left = (int(rng.integers(whole - side + 1)) for whole, side in zip((height, width), part, strict=True))
        photo = photo[top : top + part[0], left : left + part[1]]
        if rng.random() < 0.5:
            photo = photo[:, ::-1]
        return cv2.resize(photo, self.size[::-1], interpolation=cv2.INTER_AREA).astype(np.float32)


def class_names(cutouts: str | Path) -> list[str]:
    """ "background" and the sorted names of the folders, but for hidden ones."""
    folder = Path(cutouts).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} does not exist, expected a folder with one folder of cut-outs a class")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not 1 <= len(names) < IGNORE:
        raise InputError(f"{folder} has {len(names)} folders, expected one for each class, 1 to {IGNORE - 1}")
    return ["background", *names]


def read_cutout(path: Path) -> np.ndarray:
    """A cut-out ``[H, W, 4]`` uint8, without empty borders and with at most 128 pixels a side.

    Raises:
        ValueError: no alpha channel, or nothing but transparent pixels.
    """
    with opened(path) as file:
        file = decode(file, str(path), upright=True)
        clear = file.mode in ("RGBA", "LA", "PA") or "transparency" in file.info
        image = np.asarray(as_mode(file, "RGBA", str(path))) if clear else None
    if image is None:
        raise InputError(f"{path} is no cut-out, expected an 8-bit image with an alpha channel, such as a PNG")
    rows, columns = (np.flatnonzero(image[..., 3].max(axis)) for axis in (1, 0))
    if len(rows) == 0:
        raise InputError(f"{path} is transparent everywhere, expected a cut-out")
    image = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    factor = LARGEST / max(image.shape[:2])
    if factor < 1:
        size = [max(1, round(side * factor)) for side in image.shape[1::-1]]
        image = _unmultiplied(cv2.resize(_multiplied(image), size, interpolation=cv2.INTER_AREA))
    return image


def _paste(
    rng: np.random.Generator, cutout: np.ndarray, image: np.ndarray, mask: np.ndarray, label: int, p: Pasting
) -> None:
    """Paste a cut-out into ``image`` and its label into ``mask``, wherever it covers more than half of a pixel."""
    height, width = mask.shape
    longest = rng.uniform(*p.scale) * min(height, width)
    scale, angle = longest / max(cutout.shape[:2]), np.deg2rad(rng.uniform(-p.turn, p.turn))
    flip = -1 if rng.random() < 0.5 else 1
    matrix = scale * np.array([[flip * np.cos(angle), -np.sin(angle)], [flip * np.sin(angle), np.cos(angle)]])
    target = rng.uniform(0.1, 0.9, 2) * (width, height)
    source = np.array(cutout.shape[1::-1]) / 2 - 0.5
    affine = np.column_stack([matrix, target - matrix @ source])
    premultiplied = _multiplied(cutout)
    if scale < 0.5:  # the warp looks at four pixels only
        premultiplied = cv2.GaussianBlur(premultiplied, (0, 0), 0.35 / scale)
    warped = cv2.warpAffine(premultiplied, affine, (width, height), flags=cv2.INTER_LINEAR)
    alpha = warped[..., 3:] / 255
    colors = warped[..., :3] / np.maximum(alpha, 1e-3) / 255
    colors = colors.clip(0, 1) ** np.float32(p.light ** rng.uniform(-1, 1))
    tint = rng.uniform(0, 1, 3).astype(np.float32)
    colors = 255 * colors * (1 - p.tint + p.tint * tint)
    image += alpha * (colors - image)
    mask[alpha[..., 0] > 0.5] = label


def _multiplied(image: np.ndarray) -> np.ndarray:
    """Colours times alpha, float32: transparent pixels have no colour that could leak into others."""
    image = image.astype(np.float32)
    image[..., :3] *= image[..., 3:] / 255
    return image


def _unmultiplied(image: np.ndarray) -> np.ndarray:
    image[..., :3] /= np.maximum(image[..., 3:] / 255, 1e-3)
    return np.rint(image.clip(0, 255)).astype(np.uint8)


def _small(image: np.ndarray, short_side: int) -> np.ndarray:
    factor = short_side / min(image.shape[:2])
    if factor >= 1:
        return image
    size = [max(1, round(side * factor)) for side in image.shape[1::-1]]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


class CompositeData(LightningDataModule):
    """Training, validation and test composites; no cut-out and no photograph of one split is in another if their folders share none.

    Args:
        cutouts: folder with folders train, validation and test, each with one folder of cut-outs a class.
        photos: folder with folders train, validation and test of photographs.
        size: (height, width) of the images.
        batch_size: images per device and step.
        length, val_length, test_length: images per epoch, and how many to validate and to test with, always the same ones.
        num_workers: worker processes that make images; the result does not depend on their number.
        mean, std: of each channel, in 0..1.
        seed: of all random choices.
        pasting: how cut-outs are pasted.
    """

    def __init__(
        self,
        cutouts: str,
        photos: str,
        size: tuple[int, int] = (128, 128),
        batch_size: int = 8,
        length: int = 4000,
        val_length: int = 200,
        test_length: int = 500,
        num_workers: int = 1,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        seed: int = 0,
        pasting: Pasting = Pasting(),
    ) -> None:
        super().__init__()
        self.cutouts, self.photos, self.seed, self.pasting = cutouts, photos, seed, pasting
        self.size = (size[0], size[1])
        check_range("the shorter side of size", min(size), 1)
        check_deviations(std)
        self.lengths = {"train": length, "validation": val_length, "test": test_length}
        self.batch_size, self.num_workers, self.mean, self.std = batch_size, num_workers, tuple(mean), tuple(std)

    @property
    def preprocessing(self) -> dict[str, Any]:
        """How images are brought to what the network has seen, as `SegmenterConfig` has it."""
        return {"mean": self.mean, "std": self.std, "long_side": 2 * max(self.size), "short_side": min(self.size)}

    def class_names(self) -> list[str]:
        """Names of the classes, ordered by number."""
        return class_names(Path(self.cutouts) / "train")

    def train_dataloader(self) -> StreamLoader:
        """Composites of an endless stream, the next ``length`` in each epoch: images ``[B, 3, H, W]`` and masks int64 ``[B, H, W]``."""
        return stream_loader(self._dataset("train"), self.batch_size, self.num_workers)

    def val_dataloader(self) -> DataLoader:
        """Lists of images ``[3, H, W]`` and of masks int64 ``[H, W]``."""
        return self._whole("validation")

    def test_dataloader(self) -> DataLoader:
        """The same as `val_dataloader`, for the test split."""
        return self._whole("test")

    def _whole(self, split: str) -> DataLoader:
        options = loader_options(self.batch_size, self.num_workers)
        return DataLoader(self._dataset(split), collate_fn=collate_lists, **options)

    def _dataset(self, split: str) -> Dataset:
        seed = 3 * self.seed + list(self.lengths).index(split)
        cutouts, photos = (Path(root).expanduser() / split for root in (self.cutouts, self.photos))
        dataset = CompositeDataset(
            cutouts, photos, self.size, self.lengths[split], seed, self.pasting, self.class_names()
        )
        return _Normalised(dataset, self.mean, self.std)


@dataclass
class _Normalised(Dataset):
    dataset: CompositeDataset
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = self.dataset[index]
        return normalised(image, self.mean, self.std), torch.from_numpy(mask).long()
