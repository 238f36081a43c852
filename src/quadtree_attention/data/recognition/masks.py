"""Reads and checks images with their masks, and prepares images for a segmenter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ...errors import InputError
from ...extras import require
from ...files import list_photographs
from ..decoding import decode, opened
from ..images import read_image
from .ade20k import IGNORE


def read_mask(path: str | Path) -> np.ndarray:
    """Read a mask, one number a pixel: ``[H, W]`` uint8 or uint16; of a PNG with a palette, the indices.

    Raises:
        ValueError, OSError: not an image, or one with colours in place of numbers, in one line that begins with its name.
    """
    with opened(path) as image:
        mode, values = image.mode, np.asarray(decode(image, str(path), upright=False))
    if mode == "1":
        return values.astype(np.uint8)
    if mode not in ("L", "P", "I", "I;16", "I;16B"):
        raise InputError(
            f"{path} has mode {mode}, expected one number a pixel (a grey or palette PNG); masks in colours must be turned into indices first"
        )
    if values.min() < 0 or values.max() > 65535:
        raise InputError(f"{path} has values from {values.min()} to {values.max()}, expected numbers of classes")
    return values.astype(np.uint8 if values.max() <= 255 else np.uint16)


class SegmentationFolder(Dataset):
    """Images of a folder, each with the mask of the same name in another: (``[H, W, 3]`` uint8, ``[H, W]`` uint8, 255: no class).

    Args:
        images: folder of images, and of folders of them.
        masks: folder of masks, .png, at the same places.
        classes: how many.
        reduce_zero_label: 0 in the files is no class, 1 the first one, as in ADE20K.

    Raises:
        ValueError, OSError: folders that are missing or empty, an image without a mask; of single samples, another size of the mask than of the
            image, a number that no class has, what is no mask; each names the file.
    """

    def __init__(self, images: str | Path, masks: str | Path, classes: int, *, reduce_zero_label: bool = False) -> None:
        images, masks = Path(images).expanduser(), Path(masks).expanduser()
        self.images = list_photographs(images)
        if not masks.is_dir():
            raise FileNotFoundError(
                f"{masks} does not exist, expected a folder of masks, one for each image of {images}"
            )
        self.masks = [(masks / path.relative_to(images)).with_suffix(".png") for path in self.images]
        missing = [(image, mask) for image, mask in zip(self.images, self.masks, strict=True) if not mask.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{missing[0][0]} has no mask, expected {missing[0][1]}; "
                f"{len(missing)} of the {len(self.images)} images of {images} have none"
            )
        self.classes, self.reduce_zero_label = classes, reduce_zero_label

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        path = self.masks[index]
        image, mask = read_image(self.images[index]), read_mask(path)
        if image.shape[:2] != mask.shape:
            raise InputError(
                f"{path} has {mask.shape[1]}x{mask.shape[0]} pixels, but {self.images[index]} has {image.shape[1]}x{image.shape[0]}, "
                "expected the same size"
            )
        first = 1 if self.reduce_zero_label else 0
        wrong = (mask >= self.classes + first) & (mask != IGNORE)
        if wrong.any():
            raise InputError(
                f"{path} has a label {mask[wrong].min()}, expected {first} to {self.classes + first - 1} for {self.classes} classes, "
                f"{'0 or ' if first else ''}{IGNORE} for none"
            )
        if first:
            mask = np.where(mask == IGNORE, IGNORE, mask.astype(np.int32) - 1) % 256  # 0 becomes 255
        return image, mask.astype(np.uint8)


def normalised(image: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """``[H, W, 3]`` uint8 RGB to ``[3, H, W]`` float32, less the mean and over the deviation of each channel, of 0..1."""
    scale = [1 / (255 * s) for s in std]
    shift = [-m / s for m, s in zip(mean, std, strict=True)]
    image = image * np.asarray(scale, np.float32) + np.asarray(shift, np.float32)
    return torch.from_numpy(image).permute(2, 0, 1).contiguous()


def check_deviations(std: Sequence[float]) -> None:
    """Raise a ValueError unless `normalised` can divide by them."""
    if min(std) <= 0:
        raise InputError(f"std is {list(std)}, expected numbers above 0")


def check_sides(long_side: int, short_side: int, divisor: int) -> None:
    """Raise a ValueError unless `fitted_sizes` can work with them."""
    if not 1 <= short_side <= long_side or divisor < 1:
        raise InputError(
            f"short_side, long_side and divisor are {short_side}, {long_side} and {divisor}, "
            "expected 1 <= short_side <= long_side and a divisor of at least 1"
        )


def fitted_sizes(
    height: int, width: int, long_side: int, short_side: int, divisor: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) to which an image is first scaled (mmsegmentation's keep_ratio), and then stretched (PVT's AlignResize)."""
    factor = min(long_side / max(height, width), short_side / min(height, width))
    height, width = (max(int(side * factor + 0.5), 1) for side in (height, width))
    return (height, width), (-(-height // divisor) * divisor, -(-width // divisor) * divisor)


def preprocess(
    image: np.ndarray,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    long_side: int,
    short_side: int,
    divisor: int,
) -> Tensor:
    """Prepare an image ``[H, W, 3]`` uint8 for the network, ``[3, h, w]``: resized to its `fitted_sizes`, bilinearly and without antialiasing as
    published, and normalised."""
    cv2 = require("cv2", "vision")
    height, width = image.shape[:2]
    for size in fitted_sizes(height, width, long_side, short_side, divisor):
        if size != image.shape[:2]:
            image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    return normalised(image, mean, std)


def collate_lists(samples: Sequence[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    """Samples of any sizes as a list of images and one of masks."""
    images, masks = zip(*samples, strict=True)
    return list(images), list(masks)
