"""Shared by the layouts with depth and pose: images and depth at the size that the network gets."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from ...errors import InputError
from ..photos import read_gray
from ..warp import resize_matrix
from .pairs import Size

_STRETCH = 0.03  # share by which the shape of an image may differ from that of its camera: ScanNet's colour images by half a percent
_BEND = 0.02  # share of its inverse depth by which a surface may bend from pixel to pixel; more is an edge


def posed_image(
    path: str | Path,
    K: np.ndarray,
    stored: Size,
    size: Size,
    pad: int | None = None,
    depth: np.ndarray | None = None,
    smooth: bool = False,
) -> dict[str, torch.Tensor]:
    """One image of a pair: ``image`` ``[1, H, W]`` in 0..1, ``K`` ``[3, 3]`` for it, ``depth`` ``[H, W]`` and ``mask`` ``[H, W]`` if asked for.

    ``to_stored`` ``[3, 3]`` takes its pixels to those of an image of size ``stored``.

    Args:
        path: of the image.
        K: intrinsics in pixels of an image of size ``stored``.
        size: to resize image and depth to.
        pad: then add zeros to the right and below, to a square of this side, and a mask of what is no padding.
        depth: ``[h, w]``, 0 = unknown, of the same view at any size.
        smooth: average what is shrunk. Without it pixels are picked and interpolated, as by the published code, and as its networks expect.

    Raises:
        ValueError, OSError: the file is no image, or one of another shape than ``stored``.
    """
    whole = read_gray(path, min(size) if smooth else None, upright=False)  # cameras and depth maps know nothing of EXIF
    height, width = whole.shape
    if abs(math.log(width / height * stored[1] / stored[0])) > _STRETCH:
        raise InputError(
            f"{path} has the shape of {width}x{height} pixels, expected that of its camera or depth map, {stored[0]}x{stored[1]}"
        )
    shrunk = smooth and size[0] < whole.shape[1]
    image = cv2.resize(whole, size, interpolation=cv2.INTER_AREA if shrunk else cv2.INTER_LINEAR)
    to_image = resize_matrix(stored, size)
    sample = {
        "image": torch.from_numpy(_padded(image, pad)).float()[None] / 255,
        "K": torch.from_numpy((to_image @ K).astype(np.float32)),
        "to_stored": torch.from_numpy(np.linalg.inv(to_image).astype(np.float32)),
    }
    if depth is not None:
        sample["depth"] = torch.from_numpy(_padded(resize_depth(depth, size), pad))
    if pad is not None:
        sample["mask"] = torch.from_numpy(_padded(np.ones(image.shape, bool), pad))
    return sample


def check_longest(longest: int, multiple: int) -> None:
    """ValueError unless images can have a longer side of ``longest`` pixels, and sides that are multiples of ``multiple``."""
    if multiple < 1 or not max(multiple, 32) <= longest <= 16384:
        raise InputError(
            f"longest is {longest} and multiple is {multiple}, expected 32 to 16384 pixels, and a multiple from 1 to that"
        )


def resize_depth(depth: np.ndarray, size: Size) -> np.ndarray:
    """Depth ``[h, w]``, 0 = unknown, at another size (width, height); float32.

    Inverse depth is affine in the pixels of a plane, so it is what is interpolated; at edges, where neighbours lie on two surfaces or one is not
    known, the nearest pixel's depth stands alone.
    """
    depth = np.where(np.isfinite(depth) & (depth > 0), depth, 0).astype(np.float32)
    if size == depth.shape[::-1]:
        return depth
    known = depth > 0
    inverse = np.where(known, 1 / np.where(known, depth, 1), 0).astype(np.float32)
    bend = cv2.Laplacian(np.pad(inverse, 1, mode="reflect", reflect_type="odd"), cv2.CV_32F)[1:-1, 1:-1]
    edge = (np.abs(bend) > _BEND * inverse) | ~known
    smooth = cv2.resize(inverse, size, interpolation=cv2.INTER_LINEAR)
    near_edge = cv2.resize(edge.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    nearest = cv2.resize(depth, size, interpolation=cv2.INTER_NEAREST_EXACT)
    one_surface = (near_edge < 1e-6) & (smooth > 0)
    return np.where(one_surface, 1 / np.where(one_surface, smooth, 1), nearest).astype(np.float32)


def pair_sample(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], T_0to1: np.ndarray) -> dict[str, Any]:
    """A sample of two images: their entries with 0 and 1 behind the names, ``T_0to1`` ``[4, 4]``, and ``supervision``, "depth" or "points"."""
    sample: dict[str, Any] = {"supervision": "points" if "points" in first else "depth"}
    sample |= {f"{name}{k}": value for k, part in enumerate((first, second)) for name, value in part.items()}
    return {**sample, "T_0to1": torch.from_numpy(np.asarray(T_0to1)[:4, :4].astype(np.float32))}


def _padded(values: np.ndarray, side: int | None) -> np.ndarray:
    if side is None:
        return values
    height, width = values.shape
    return np.pad(values, ((0, side - height), (0, side - width)))
