"""A contact sheet of classified images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.images import read_image
from ..errors import InputError
from ..extras import require
from .drawing import BACKGROUND, FAINT, GAP, INK, confidence_colors, shrunk

if TYPE_CHECKING:
    from ..predict.classification import Classification


def draw_classifications(images: Sequence[Any], found: Sequence[Classification], *, tile: int = 224) -> np.ndarray:
    """A contact sheet: every image with what it shows, likeliest first, and a bar for each probability.

    Args:
        images: any images that `data.images.read_image` takes.
        found: what was found in each.
        tile: pixels of each picture's longer side.

    Returns:
        ``[H, W, 3]`` uint8 RGB.

    Raises:
        ValueError: another number of images than of results; bad images.
    """
    if len(images) != len(found) or not images:
        raise InputError(f"got {len(images)} images and {len(found)} results, expected as many of one as of the other")
    pil, draw_module, fonts = (require(f"PIL.{name}", "vision") for name in ("Image", "ImageDraw", "ImageFont"))
    columns = min(len(images), max(1, round(len(images) ** 0.5)), 6)
    line, font = 18, fonts.load_default(13)
    height = tile + line * max(map(len, found)) + 2 * GAP
    sheet = pil.new("RGB", (columns * (tile + GAP) + GAP, -(-len(images) // columns) * height + GAP), BACKGROUND)
    draw = draw_module.Draw(sheet)
    for n, (image, one) in enumerate(zip(images, found, strict=True)):
        left, top = GAP + n % columns * (tile + GAP), GAP + n // columns * height
        picture = pil.fromarray(shrunk(read_image(image), tile)[0])
        sheet.paste(picture, (left + (tile - picture.width) // 2, top + (tile - picture.height) // 2))
        colors = confidence_colors(one.probabilities, 0, 1).tolist()
        for k, (label, p) in enumerate(zip(one.labels, one.probabilities, strict=True)):
            y = top + tile + 6 + k * line
            draw.rectangle((left, y + 2, left + max(1, round(56 * float(p))), y + line - 4), tuple(colors[k]))
            text = f"{100 * p:.0f} %  {label}"
            while draw.textlength(text, font) > tile - 64:
                text = text[:-2].rstrip(" .") + "…"
            draw.text((left + 64, y + line // 2 - 1), text, INK if k == 0 else FAINT, font, anchor="lm")
    return np.array(sheet)
