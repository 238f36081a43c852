"""Reads images of any kind as HWC uint8 RGB."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, InputWarning
from ..extras import require
from .decoding import as_mode, decode, opened, orientation, silenced, transposed

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of each channel (RGB), in 0..1
MIN_SIDE = 32  # pixels; smaller images give no matches
_LITTLE = 1 / 4  # share of the range of deep pixels; values that fill less are stretched
_TAILS = (0.1, 99.9)  # percentiles that become 0 and 255
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def read_image(source: Any, *, upright: bool = True) -> np.ndarray:
    """Read one image as ``[H, W, 3]`` uint8 RGB.

    source: a path; a PIL image; a numpy array ``[H, W]`` or ``[H, W, C]``, uint8, uint16 or float in 0..1; or a torch tensor ``[H, W]`` or
    ``[C, H, W]``, uint8 or float in 0..1; C is 1, 3 or 4.

    upright: apply the EXIF rotation. Depth maps and COLMAP's cameras refer to the pixels as stored, without it.

    16-bit images are scaled by 255/65535, floats by 255. If their values fill less than a quarter of their range, as in 12-bit and thermal images,
    the percentiles from 0.1 to 99.9 are stretched to 0..255, with an InputWarning. Transparent pixels are blended with white. Of an
    animation, the first frame is read.

    Raises:
        ValueError, OSError: an image that cannot be read, in one line that begins with its name.
    """
    if isinstance(source, str | Path):
        with opened(source) as image:
            return _from_pil(image, str(source), upright, Path(source))
    if isinstance(source, np.ndarray):
        return _from_array(source, "numpy image", "[H, W] or [H, W, C]")
    module = type(source).__module__.partition(".")[0]
    if module == "torch":
        return _from_tensor(source)
    if module == "PIL":
        return _from_pil(source, "PIL image", upright)
    raise InputError(
        f"image is a {type(source).__name__}, expected a path, a PIL image, a numpy array or a torch tensor"
    )


def to_gray(image: np.ndarray) -> np.ndarray:
    """``[H, W, 3]`` uint8 RGB to ``[H, W]`` float32 in 0..1, by the luma of ITU-R BT.601."""
    return image @ (_LUMA / 255)


def fitted_size(size: tuple[int, int], max_size: int, name: str = "image") -> tuple[int, int]:
    """(height, width) scaled down until the longer side is at most ``max_size`` pixels; never scaled up.

    Raises:
        ValueError: a side of the result, or ``max_size``, is below `MIN_SIDE`.
    """
    if max_size < MIN_SIDE:
        raise InputError(f"max_size is {max_size}, expected at least {MIN_SIDE} pixels")
    factor = min(max_size / max(size), 1.0)
    height, width = (max(round(side * factor), 1) for side in size)
    if min(height, width) < MIN_SIDE:
        shrunk = f" ({width}x{height} after shrinking to max_size {max_size})" if factor < 1 else ""
        raise InputError(
            f"{name} is too small: {size[1]}x{size[0]} pixels{shrunk}, expected at least {MIN_SIDE} on each side"
        )
    return height, width


def resize_longest(image: np.ndarray, max_size: int, name: str = "image") -> tuple[np.ndarray, tuple[float, float]]:
    """Shrink ``[H, W, 3]`` uint8 until its longer side is at most ``max_size`` pixels, with antialiasing; never enlarge.

    Returns the image and its scale, new size over old, in x and y (they differ by rounding). With pixel centres at integers, pixel x of
    the new image is ``(x + 0.5) / scale - 0.5`` of the old one. Raises like `fitted_size`.
    """
    height, width = image.shape[:2]
    new_height, new_width = fitted_size((height, width), max_size, name)
    if (new_height, new_width) == (height, width):
        return image, (1.0, 1.0)
    pil = require("PIL.Image", "vision")
    resized = np.asarray(pil.fromarray(image).resize((new_width, new_height), pil.Resampling.BICUBIC))
    return resized, (new_width / width, new_height / height)


def stored_size(path: Path) -> tuple[int, int]:
    """(width, height) of an image file as stored, before its EXIF rotation; its pixels are not read. Raises like `read_image`."""
    with opened(path) as image:
        return image.size


def stored_pixels(path: Path, points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Map pixels (x, y) ``[N, 2]`` of an image from `read_image` to those of the file as stored, before its EXIF rotation.

    size: (height, width) of the image from `read_image`.
    """
    with opened(path) as image:
        turn = orientation(image)
    x, y = points[:, 0], points[:, 1]
    right, bottom = size[1] - 1 - x, size[0] - 1 - y
    turned = {
        2: (right, y),
        3: (right, bottom),
        4: (x, bottom),
        5: (y, x),
        6: (y, right),
        7: (bottom, right),
        8: (bottom, x),
    }.get(turn, (x, y))
    return np.stack(turned, 1)


def _from_pil(image: Any, name: str, upright: bool, path: Path | None = None) -> np.ndarray:
    deep_colors = image.mode in ("RGB", "RGBA") and ";16" in str(getattr(image, "tile", "")[:1])
    image = decode(image, name, upright=upright)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        deep = np.asarray(image)
        if image.mode == "I":  # 32-bit integers, as which some versions of Pillow read 16-bit files
            if deep.min() < 0 or deep.max() > 65535:
                raise InputError(
                    f"{name} has 32-bit values from {deep.min()} to {deep.max()}, expected 0..65535; convert it to 16 bits"
                )
            deep = deep.astype(np.uint16)
        return _from_array(deep.astype(deep.dtype.newbyteorder("=")), name, "[H, W]")
    pixels = np.array(_to_rgb(image, name))
    if deep_colors and path is not None and np.ptp(pixels) < _LITTLE * 255:
        # Pillow keeps only the upper 8 bits of 16-bit colours: too few grey levels here.
        colors = _all_bits(path, upright)
        return pixels if colors is None else _from_array(colors, name, "[H, W, C]")
    return pixels


def _all_bits(path: Path, upright: bool) -> np.ndarray | None:
    """16-bit colours ``[H, W, 3 or 4]`` uint16 of a file; None if OpenCV sees none."""
    cv2, pil = require("cv2", "vision"), require("PIL.Image", "vision")
    with silenced():
        deep = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)  # as stored
    if deep is None or deep.dtype != np.uint16 or deep.ndim != 3:
        return None
    with opened(path) as image:
        turn = orientation(image) if upright else 1
    channels = (deep[..., k] for k in (2, 1, 0, 3)[: deep.shape[2]])
    return np.stack([np.asarray(transposed(pil.fromarray(one), turn)) for one in channels], -1)


def _to_rgb(image: Any, name: str) -> Any:
    """Convert a decoded image of any mode to RGB, blending transparent pixels with white."""
    if image.mode == "La":
        image = as_mode(image, "LA", name)
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        pil = require("PIL.Image", "vision")
        image = as_mode(image, "RGBA", name)
        image = pil.alpha_composite(pil.new("RGBA", image.size, "white"), image)
    return as_mode(image, "RGB", name)


def _from_tensor(tensor: Any) -> np.ndarray:
    if tensor.dim() not in (2, 3):
        raise InputError(
            f"torch image has shape {tuple(tensor.shape)}, expected [C, H, W] or [H, W]; pass one image at a time"
        )
    tensor = tensor.detach().cpu()
    array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    if array.ndim == 3:
        if array.shape[0] not in (1, 3, 4):
            raise InputError(f"torch image has shape {array.shape}, expected [C, H, W] with 1, 3 or 4 channels")
        array = array.transpose(1, 2, 0)
    return _from_array(array, "torch image", "[C, H, W] or [H, W]")


def _from_array(array: np.ndarray, name: str, expected: str) -> np.ndarray:
    if array.ndim not in (2, 3):
        raise InputError(f"{name} has shape {array.shape}, expected {expected}")
    if array.size == 0:
        raise InputError(f"{name} has shape {array.shape}, expected at least one pixel")
    if array.ndim == 2:
        array = array[..., None]
    if array.shape[-1] not in (1, 3, 4):
        raise InputError(
            f"{name} has shape {array.shape} with {array.shape[-1]} channels, expected {expected} with 1, 3 or 4"
        )
    array = _to_uint8(array, name)
    if array.shape[-1] == 4:  # over white
        alpha = array[..., 3:].astype(np.float32) / 255
        array = np.rint(array[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))


def _to_uint8(array: np.ndarray, name: str) -> np.ndarray:
    """Convert ``[H, W, C]`` to 8 bits; values that fill little of their range are stretched, with a warning, to keep enough grey levels."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        full = 65535.0
    elif np.issubdtype(array.dtype, np.floating):
        full = 1.0
        low, high = float(array.min()), float(array.max())
        if not np.isfinite(low + high):
            raise InputError(f"{name} holds NaN or infinite values, expected floats in 0..1")
        if low < -1e-3 or high > 1 + 1e-3:
            raise InputError(
                f"{name} has float values from {low:g} to {high:g}, expected 0..1; divide by the largest value it can have"
            )
    else:
        raise InputError(f"{name} has dtype {array.dtype}, expected uint8, uint16, or float in 0..1")
    colors = array[..., :3]
    step = 1 + max(array.shape[:2]) // 1000  # percentiles of fewer pixels are as good
    low, high = (float(value) for value in np.percentile(colors[::step, ::step], _TAILS))
    if 0 < high - low < _LITTLE * full:
        warnings.warn(
            InputWarning(
                f"{name}: values from {low:.6g} to {high:.6g} fill little of 0..{full:g}, they were stretched"
            ),
            stacklevel=4,
        )
    else:
        low, high = 0.0, full
    pixels = (array.astype(np.float32) - np.float32(low)) * np.float32(255 / (high - low))
    if array.shape[-1] == 4:  # alpha keeps its own range
        pixels[..., 3] = array[..., 3].astype(np.float32) * np.float32(255 / full)
    return np.rint(pixels.clip(0, 255)).astype(np.uint8)
