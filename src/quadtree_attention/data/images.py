"""Reading images of any kind into one form: HWC uint8 RGB."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..extras import require

MAX_PIXELS = 178_956_970  # a quarter of 2**29 * 4/3 bytes: what Pillow itself takes for a decompression bomb
MIN_SIDE = 32  # pixels: below, no match can be found
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


def read_image(source: Any, *, upright: bool = True) -> np.ndarray:
    """Read one image as ``[H, W, 3]`` uint8 RGB.

    source: a path; a PIL image; a numpy array ``[H, W]`` or ``[H, W, C]``, uint8, uint16 or float in 0..1; or a torch tensor ``[H, W]`` or
    ``[C, H, W]``, uint8 or float in 0..1; C is 1, 3 or 4.

    upright: apply the EXIF rotation. Depth maps and COLMAP's cameras are of the pixels as stored, without.

    16-bit images are scaled by 255/65535. Transparent pixels are laid over white. Of an animation, the first frame is taken.

    Raises:
        ValueError, OSError: whatever is wrong with the image, in one line that starts with its name.
    """
    if isinstance(source, str | Path):
        return _read_file(Path(source), upright)
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
    """(height, width) once the longer side is at most ``max_size`` pixels; never larger than ``size``.

    Raises:
        ValueError: a side comes below `MIN_SIDE`, or ``max_size`` is.
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
    the new image is ``(x + 0.5) / scale - 0.5`` of the old one. Raises as `fitted_size`.
    """
    height, width = image.shape[:2]
    new_height, new_width = fitted_size((height, width), max_size, name)
    if (new_height, new_width) == (height, width):
        return image, (1.0, 1.0)
    pil = require("PIL.Image", "vision")
    resized = np.asarray(pil.fromarray(image).resize((new_width, new_height), pil.Resampling.BICUBIC))
    return resized, (new_width / width, new_height / height)


def stored_pixels(path: Path, points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pixels (x, y) ``[N, 2]`` of an image as `read_image` gives it -> pixels of the file as stored, before its EXIF rotation.

    size: (height, width) as `read_image` gives it.
    """
    with require("PIL.Image", "vision").open(path) as image:
        try:
            orientation = image.getexif().get(0x0112, 1)
        except Exception:  # as in _upright: the metadata can be anything
            return points
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
    }.get(orientation, (x, y))
    return np.stack(turned, 1)


def _read_file(path: Path, upright: bool) -> np.ndarray:
    pil = require("PIL.Image", "vision")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, expected an image file")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist, expected an image file")
    if not path.is_file():
        raise InputError(f"{path} is not a regular file, expected an image file")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes), expected an image file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow: large sizes (checked below), odd metadata
            image = pil.open(path)
    except pil.UnidentifiedImageError:
        raise InputError(f"{path} is not an image of a kind that Pillow can read") from None
    except pil.DecompressionBombError:
        raise InputError(f"{path} has more than {MAX_PIXELS} pixels; make it smaller first") from None
    except OSError as error:
        raise type(error)(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # decoders raise almost anything on damaged headers
        raise InputError(f"{path} is damaged: {_one_line(error)}") from None
    with image:
        return _from_pil(image, str(path), upright)


def _from_pil(image: Any, name: str, upright: bool) -> np.ndarray:
    pil, ops = require("PIL.Image", "vision"), require("PIL.ImageOps", "vision")
    width, height = image.size
    if width == 0 or height == 0:
        raise InputError(f"{name} has size {width}x{height}, expected at least 1x1 pixel")
    if width * height > MAX_PIXELS:
        raise InputError(f"{name} has {width}x{height} pixels, expected at most {MAX_PIXELS}; make it smaller first")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata
            image.load()
            image = _upright(image, ops) if upright else image
            if image.mode in ("I", "F") or image.mode.startswith("I;16"):
                deep = np.asarray(image)
            else:
                deep = None
                image = _to_rgb(image, pil)
    except OSError as error:
        raise InputError(f"{name} is truncated or damaged: {_one_line(error)}") from None
    except Exception as error:  # decoders raise almost anything on damaged data
        raise InputError(f"{name} cannot be decoded: {_one_line(error)}") from None
    if deep is None:
        return np.array(image)
    if image.mode == "I":  # 32-bit whole numbers: how some versions of Pillow hold 16-bit files
        if deep.min() < 0 or deep.max() > 65535:
            raise InputError(
                f"{name} has 32-bit values from {deep.min()} to {deep.max()}, expected 0..65535; convert it to 16 bits"
            )
        deep = deep.astype(np.uint16)
    return _from_array(deep.astype(deep.dtype.newbyteorder("=")), name, "[H, W]")


def _upright(image: Any, ops: Any) -> Any:
    """Apply the EXIF rotation; an image whose metadata is damaged stays as it is."""
    try:
        return ops.exif_transpose(image)
    except Exception:  # the pixels are fine, and the metadata can be anything
        return image


def _to_rgb(image: Any, pil: Any) -> Any:
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = pil.alpha_composite(pil.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


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
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return np.rint(array.astype(np.float32) * (255 / 65535)).astype(np.uint8)
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"{name} has dtype {array.dtype}, expected uint8, uint16, or float in 0..1")
    low, high = float(array.min()), float(array.max())
    if not np.isfinite(low + high):
        raise InputError(f"{name} holds NaN or infinite values, expected floats in 0..1")
    if low < -1e-3 or high > 1 + 1e-3:
        raise InputError(
            f"{name} has float values from {low:g} to {high:g}, expected 0..1; divide by the largest value it can have"
        )
    return np.rint(array.clip(0, 1).astype(np.float32) * 255).astype(np.uint8)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
