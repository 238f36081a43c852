"""Stereo: a rectified pair of any kind of images in, disparity in their pixels out."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.images import read_image, resize_longest
from ..data.stereo.calibration import StereoCamera
from ..errors import InputError
from ..extras import require
from ..files import atomic_write, checked_suffix
from ..formats import DISPARITY_SUFFIXES
from ..models.sttr import STTR
from ..models.sttr.exact import exact_disparity
from .base import Predictor
from .finite import check_finite
from .results import Result
from .stereo_rows import check_rows

PNG_SCALE = 256  # as in KITTI: values of the file per pixel of disparity; 0 is unknown


@dataclass(frozen=True, eq=False)
class Stereo(Result):
    """Disparity of one view of a rectified pair, all float32 ``[H, W]``.

    disparity: in pixels of the image as given: left x - disparity = right x.
    occlusion: 0..1, whether the pixel is hidden in the other view; its disparity is then a guess.
    confidence: 0..1, how much better its match is than any other; 0 where the two views disagree.
    """

    disparity: np.ndarray
    occlusion: np.ndarray
    confidence: np.ndarray

    @property
    def range(self) -> tuple[float, float]:
        """The 1st and 99th percentile of the disparity of pixels that both views show."""
        seen = self.disparity[self.occlusion <= 0.5]
        low, high = np.percentile(seen if seen.size else self.disparity, (1, 99))
        return float(low), float(high)

    def save(self, path: str | Path) -> None:
        """Write the disparity to .npy (float32), .pfm, or 16-bit .png (256 times the pixels, as KITTI has it); whole or not at all.

        Disparities of 256 pixels and more do not fit into 16 bits: they become 0, unknown, in a .png. A warning says how many.
        """
        _save(path, self.disparity, "disparities")

    def save_depth(self, path: str | Path, camera: StereoCamera) -> None:
        """Write `StereoCamera.depth` as `save` writes disparity: a .png has 256 times the depth, and 0 where that does not fit."""
        height, width = self.disparity.shape
        _save(path, camera.of_images((width, height)).depth(self.disparity), "depths")

    def points(self, image: Any, camera: StereoCamera) -> tuple[np.ndarray, np.ndarray]:
        """Compute 3-D points of the pixels that both views show.

        Args:
            image: the view that the disparity belongs to, for colours.
            camera: of that view, in pixels of the image as given, or of the size it names; for the right view see `StereoCamera.of_right`.

        Returns:
            ``[N, 3]`` float32, x to the right, y down, z ahead, in the unit of the baseline; ``[N, 3]`` uint8 RGB. Pixels with a disparity of less
            than a tenth of a pixel are left out: their depth is unknown.
        """
        colors = read_image(image)
        if colors.shape[:2] != self.disparity.shape:
            raise InputError(
                f"image has {colors.shape[1]}x{colors.shape[0]} pixels, expected the "
                f"{self.disparity.shape[1]}x{self.disparity.shape[0]} of the disparity"
            )
        height, width = self.disparity.shape
        camera = camera.of_images((width, height))
        shown = (self.occlusion <= 0.5) & (self.disparity + camera.offset > 0.1)
        rows, columns = np.nonzero(shown)
        depth = camera.depth(self.disparity[shown])
        middle = camera.center or ((width - 1) / 2, (height - 1) / 2)
        x, y = (columns - middle[0]) * depth / camera.focal, (rows - middle[1]) * depth / camera.focal
        return np.stack([x, y, depth], 1).astype(np.float32), colors[shown]

    def save_points(self, path: str | Path, image: Any, camera: StereoCamera) -> None:
        """Write `points` to a binary .ply, whole or not at all."""
        checked_suffix(path, (".ply",))
        places, colors = self.points(image, camera)
        names = ("x", "y", "z", "red", "green", "blue")
        rows = np.empty(len(places), [(name, "<f4" if name in "xyz" else "u1") for name in names])
        for k, name in enumerate(names):
            rows[name] = places[:, k] if k < 3 else colors[:, k - 3]
        head = ["ply", "format binary_little_endian 1.0", f"element vertex {len(rows)}"]
        head += [f"property {'float' if name in 'xyz' else 'uchar'} {name}" for name in names]
        with atomic_write(path) as temporary:
            temporary.write_bytes(("\n".join([*head, "end_header"]) + "\n").encode() + rows.tobytes())


class StereoMatcher(Predictor):
    """Disparity of rectified pairs with an `STTR`.

    Args:
        model: the network. It stays as it is, and its weights are shared.
        device: where to run it, such as "cpu" or "cuda"; by default where it is. Another device takes a copy of the weights.
    """

    model: STTR

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path = "stereo_tiny", *, device: str | torch.device | None = None
    ) -> StereoMatcher:
        """Load weights: "stereo_tiny" comes with the package; or the path of a file. The device is by default a CUDA GPU if there is one.

        Raises:
            ValueError, OSError: an unknown name, a file that cannot be read, weights that do not fit.
        """
        return cls._loaded(name_or_path, "stereo", device, channels_last=True)

    def match(
        self,
        left: Any,
        right: Any,
        *,
        max_size: int = 800,
        view: Literal["left", "right"] = "left",
        exact: bool = True,
    ) -> Stereo:
        """Find the disparity of a rectified pair.

        Args:
            left, right: of one size; a path, PIL image, numpy array or torch tensor each, see `data.images.read_image`.
            max_size: images are shrunk until their longer side is at most this many pixels, and twice as many for the last step. After that, each
                side must have at least 32.
            view: the view that the result belongs to; for the right one, both views are mirrored and exchanged.
            exact: whether to run the last step, `exact_disparity`, after the network.

        Returns:
            `Stereo`, at the size and in pixels of the images as given. It warns if rows do not correspond, if many disparities are
            below 0, or if the views seem to be exchanged; see `check_rows`.

        Raises:
            ValueError, OSError: bad images or options, or a network that gives NaN or infinity.
        """
        if view not in ("left", "right"):
            raise InputError(f"view is {view!r}, expected left or right")
        images = [read_image(source) for source in (left, right)]
        names = [
            str(source) if isinstance(source, str | Path) else name
            for source, name in ((left, "left"), (right, "right"))
        ]
        sizes = [f"{image.shape[1]}x{image.shape[0]}" for image in images]
        if sizes[0] != sizes[1]:
            raise InputError(
                f"{names[0]} has {sizes[0]} pixels and {names[1]} {sizes[1]}, expected a rectified pair of one size"
            )
        small = [resize_longest(image, max_size, name)[0] for image, name in zip(images, names, strict=True)]
        large = [resize_longest(image, 2 * max_size)[0] for image in images]
        if problem := check_rows(small[0], small[1], images[0].shape[1] / small[0].shape[1]):
            warnings.warn(problem, stacklevel=2)
        if view == "right":
            large, small = ([np.ascontiguousarray(image[:, ::-1]) for image in pair[::-1]] for pair in (large, small))
        with torch.inference_mode():
            found = self.model(*(_tensor(image).to(self.device) for image in small))
            check_finite((found.disparity, found.logit, found.confidence))
        disparity, occlusion, confidence = (
            x.float().cpu() for x in (found.disparity, found.occlusion, found.confidence)
        )
        width = small[0].shape[1]
        if exact:
            size = large[0].shape[:2]
            step = exact_disparity(large[0], large[1], found, self.model.config.stride, size[1] / width)
            disparity, width = torch.from_numpy(step.disparity)[None], size[1]
            occlusion, confidence = (resize_map(x, size) for x in (occlusion, confidence))
            # The exact disparity decides what is hidden (occlusion above 0.5), the network how surely.
            occlusion = (torch.from_numpy(step.hidden) + occlusion.clamp(1e-3, 1)) / 2
            confidence = torch.from_numpy(step.sure) * confidence
        given = images[0].shape[:2]
        maps = [resize_map(x, given) for x in (disparity * (given[1] / width), occlusion, confidence)]
        if view == "right":
            maps = [x.flip(-1) for x in maps]
        return Stereo(*(np.ascontiguousarray(x[0].numpy()) for x in maps))


def _tensor(image: np.ndarray) -> Tensor:
    """uint8 ``[H, W, 3]`` to ``[1, 3, H, W]`` in 0..1."""
    return torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32) / 255)[None]


def resize_map(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize ``[B, h, w]`` to ``[B, H, W]``: bilinear on surfaces, nearest where bilinear would make up depths between two of them."""
    if tuple(x.shape[1:]) == size:
        return x
    smooth = F.interpolate(x[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    nearest = F.interpolate(x[:, None], size, mode="nearest-exact")[:, 0]
    return torch.where((smooth - nearest).abs() > 1, nearest, smooth)


def _save(path: str | Path, values: np.ndarray, name: str) -> None:
    suffix = checked_suffix(path, DISPARITY_SUFFIXES)
    with atomic_write(path) as temporary:
        _WRITERS[suffix](temporary, values, name)


def _write_npy(path: Path, values: np.ndarray, name: str) -> None:
    with path.open("wb") as file:
        np.save(file, values)


def _write_pfm(path: Path, values: np.ndarray, name: str) -> None:
    """Rows from bottom to top, little-endian."""
    head = f"Pf\n{values.shape[1]} {values.shape[0]}\n-1.0\n".encode()
    path.write_bytes(head + values[::-1].astype("<f4").tobytes())


def _write_png(path: Path, values: np.ndarray, name: str) -> None:
    scaled = np.rint(values * PNG_SCALE).clip(1, None)
    beyond = scaled > 65535
    if beyond.any():
        warnings.warn(
            f"{beyond.sum():,} of {beyond.size:,} pixels have {name} of {65535 / PNG_SCALE:.0f} and more, which a 16-bit .png cannot hold; they "
            "are 0 in it: unknown; .npy and .pfm hold them",
            stacklevel=4,
        )
    require("PIL.Image", "vision").fromarray(np.where(beyond, 0, scaled).astype(np.uint16)).save(path)


_WRITERS = {".npy": _write_npy, ".pfm": _write_pfm, ".png": _write_png}
