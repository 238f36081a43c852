"""Draws a contact sheet of classified images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..data.images import read_image
from ..errors import InputError
from ..extras import require
from ..files import printable
from ..predict.classification import Classification
from .drawing import BACKGROUND, FAINT, GAP, INK, confidence_colors, shrunk


def draw_classifications(
    images: Sequence[Any], found: Sequence[Classification], *, names: Sequence[str] | None = None, tile: int = 224
) -> np.ndarray:
    """Draw a contact sheet: every image with its name and classes, likeliest first, and a bar for each probability.

    Args:
        images: any images that `data.images.read_image` takes.
        found: the result for each.
        names: of the images, to print below them; None leaves them out.
        tile: longer side of each picture in pixels.

    Returns:
        ``[H, W, 3]`` uint8 RGB.

    Raises:
        ValueError: the numbers of images and results differ; bad images.
    """
    if len(images) != len(found) or not images or len(names or found) != len(found):
        of_names = "" if names is None else f", {len(names)} names"
        raise InputError(f"got {len(images)} images{of_names} and {len(found)} results, expected as many of each")
    pil, draw_module, fonts = (require(f"PIL.{name}", "vision") for name in ("Image", "ImageDraw", "ImageFont"))
    columns = min(len(images), max(1, round(len(images) ** 0.5)), 6)
    line, font = 18, fonts.load_default(13)
    title = 0 if names is None else line
    height = tile + title + line * max(map(len, found)) + 2 * GAP
    sheet = pil.new("RGB", (columns * (tile + GAP) + GAP, -(-len(images) // columns) * height + GAP), BACKGROUND)
    draw = draw_module.Draw(sheet)
    for n, (image, one) in enumerate(zip(images, found, strict=True)):
        left, top = GAP + n % columns * (tile + GAP), GAP + n // columns * height
        picture = pil.fromarray(shrunk(read_image(image), tile)[0])
        sheet.paste(picture, (left + (tile - picture.width) // 2, top + (tile - picture.height) // 2))
        if names is not None:
            name = _fitting(printable(names[n]), lambda text: draw.textlength(text, font) <= tile, keep_end=True)
            draw.text((left, top + tile + 6 + line // 2 - 1), name, INK, font, anchor="lm")
        colors = confidence_colors(one.probabilities, 0, 1).tolist()
        for k, (label, p) in enumerate(zip(one.labels, one.probabilities, strict=True)):
            y = top + tile + 6 + title + k * line
            draw.rectangle((left, y + 2, left + max(1, round(56 * float(p))), y + line - 4), tuple(colors[k]))
            text = _fitting(f"{100 * p:.0f} %  {label}", lambda text: draw.textlength(text, font) <= tile - 64)
            draw.text((left + 64, y + line // 2 - 1), text, INK if k == 0 else FAINT, font, anchor="lm")
    return np.array(sheet)


def _fitting(text: str, fits: Callable[[str], bool], *, keep_end: bool = False) -> str:
    """Shorten a text at its end, or at its beginning, until it fits."""
    whole, dropped = text, 0
    while not fits(text) and dropped < len(whole):
        dropped += 1
        text = "…" + whole[dropped:] if keep_end else whole[:-dropped].rstrip(" .") + "…"
    return text
