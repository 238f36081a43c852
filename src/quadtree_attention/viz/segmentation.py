"""Draws the classes of an image as colours over it, with a legend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data.images import read_image
from ..errors import InputError
from ..extras import require
from ..predict.segmentation import Segmentation, class_colors
from .drawing import BACKGROUND, FAINT, GAP, INK, shrunk, unit

LINE = 24  # pixels of a row of the legend


def draw_segmentation(
    image: Any, found: Segmentation, *, opacity: float = 0.55, max_side: int | None = None
) -> np.ndarray:
    """Tint an image by class, with outlines between classes; the legend below lists classes by their share of the image, largest first.

    Args:
        image: the segmented image, in any form that `data.images.read_image` takes.
        found: its segmentation.
        opacity: of the colours, 0..1. A first class named "background" has none.
        max_side: the image is shrunk until its longer side has at most this many pixels; None leaves it as it is.

    Returns:
        ``[H, W, 3]`` uint8 RGB.

    Raises:
        ValueError: an image of another size.
    """
    pixels = read_image(image)
    if pixels.shape[:2] != found.labels.shape:
        raise InputError(f"image has {pixels.shape[:2]} pixels, and the result {found.labels.shape}, expected one size")
    picture = tinted(shrunk(pixels, max_side)[0], found.labels, found.names, opacity)
    shares = found.shares()
    pil, draw_module, fonts = (require(f"PIL.{name}", "vision") for name in ("Image", "ImageDraw", "ImageFont"))
    one = unit(picture)
    font = fonts.load_default(round(14 * one))
    width = max(picture.shape[1], 240)
    places, height = _legend(shares, width, font, one)
    sheet = pil.new("RGB", (width, picture.shape[0] + height), BACKGROUND)
    sheet.paste(pil.fromarray(picture), (0, 0))
    draw = draw_module.Draw(sheet)
    colors = dict(zip(found.names, class_colors(found.names).tolist(), strict=True))
    for (name, share), (x, y) in zip(shares.items(), places, strict=True):
        y += picture.shape[0]
        draw.rectangle((x, y - 7 * one, x + 13 * one, y + 6 * one), tuple(colors[name]), FAINT)
        draw.text((x + 20 * one, y), _entry(name, share), INK, font, anchor="lm")
    return np.array(sheet)


def tinted(image: np.ndarray, labels: np.ndarray, names: Sequence[str], opacity: float = 0.55) -> np.ndarray:
    """Tint ``[H, W, 3]`` uint8 by ``labels`` ``[h, w]``, which are resized to it; outlines between classes are bright."""
    cv2 = require("cv2", "vision")
    labels = cv2.resize(labels, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    colors = np.zeros((256, 3), np.float32)
    colors[: len(names)] = class_colors(names)
    weight = np.full(256, opacity, np.float32)
    if names[0] == "background":
        weight[0] = 0
    weight[len(names) :] = 0  # no class
    picture = np.empty_like(image)
    for top in range(0, len(image), 256):  # in strips: for a large photograph, floats would take gigabytes
        strip = slice(top, top + 256)
        alpha = weight[labels[strip]][..., None]
        picture[strip] = np.rint(image[strip] * (1 - alpha) + colors[labels[strip]] * alpha)
    edge = np.zeros(labels.shape, bool)
    edge[1:] |= labels[1:] != labels[:-1]
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    picture[cv2.dilate(np.uint8(edge), np.ones((round(unit(image)),) * 2, np.uint8)) > 0] = 255
    return picture


def _entry(name: str, share: float) -> str:
    return f"{name} {100 * share:.0f} %" if share >= 0.005 else f"{name} <1 %"


def _legend(shares: dict[str, float], width: int, font: Any, one: float) -> tuple[list[tuple[float, float]], int]:
    """The position of each entry, and the total height."""
    gap, line = GAP * one, LINE * one
    x, y, places = gap, gap + line / 2, []
    for name, share in shares.items():
        long = 20 * one + font.getlength(_entry(name, share)) + gap
        if x > gap and x + long > width:
            x, y = gap, y + line
        places.append((x, y))
        x += long
    return places, round(y + line / 2 + gap)
