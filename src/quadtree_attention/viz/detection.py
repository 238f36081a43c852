"""Draws boxes and masks over an image, one colour per class, with a legend."""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np

from ..data.images import read_image
from ..errors import InputError
from ..extras import require
from ..predict.detection import Detections
from .drawing import BACKGROUND, BAR, FAINT, INK, shrunk, unit

# The first classes; more go on around the circle of hues.
COLORS = (
    (255, 99, 97),
    (56, 182, 255),
    (255, 214, 64),
    (122, 230, 110),
    (190, 120, 255),
    (255, 150, 50),
    (70, 235, 215),
    (255, 130, 200),
)


def draw_detections(image: Any, found: Detections, *, scores: bool = True, max_side: int | None = None) -> np.ndarray:
    """Draw detections over an image: tinted masks, boxes with label and score, and below a legend with the number of each class.

    Args:
        image: the image in which they were found, in any form that `data.images.read_image` takes.
        found: the detections.
        scores: whether to print scores beside the labels.
        max_side: the image is shrunk until its longer side has at most this many pixels; None leaves it as it is.

    Returns:
        ``[H, W, 3]`` uint8 RGB.

    Raises:
        ValueError: an image of another size; bad images.
    """
    pixels = read_image(image)
    if pixels.shape[:2] != tuple(found.size):
        raise InputError(
            f"the image has {pixels.shape[1]}x{pixels.shape[0]} pixels, expected {found.size[1]}x{found.size[0]} as in the detections"
        )
    pil, draw_module, fonts = (require(f"PIL.{name}", "vision") for name in ("Image", "ImageDraw", "ImageFont"))
    picture, scale = shrunk(pixels, max_side)
    picture = picture.copy()
    order = np.argsort(found.scores, kind="stable")  # the highest score on top
    if found.masks is not None:
        for n in order:
            _tint(picture, found.masks[n], class_color(int(found.indices[n])))
    height, width = picture.shape[:2]
    line = max(2, round(max(height, width) / 400))
    font = fonts.load_default(max(11, round(max(height, width) / 60)))
    shown = pil.fromarray(picture)
    draw = draw_module.Draw(shown)
    boxes = found.boxes * np.array([*scale, *scale], np.float32)
    for n in order:
        x0, y0, x1, y1 = boxes[n].tolist()
        color = class_color(int(found.indices[n]))
        draw.rectangle((x0, y0, max(x1 - 1, x0), max(y1 - 1, y0)), outline=color, width=line)
    taken: list[tuple[float, float, float, float]] = []
    for n in order[::-1]:
        text = f"{found.labels[n]} {100 * float(found.scores[n]):.0f}" if scores else found.labels[n]
        place = _tag_place(draw, font, text, boxes[n].tolist(), (width, height), taken)
        taken.append(place)
        draw.rectangle(place, fill=class_color(int(found.indices[n])))
        draw.text((place[0] + 3, (place[1] + place[3]) / 2), text, BACKGROUND, font, anchor="lm")
    return _legend(np.array(shown), found, pil, draw_module, fonts)


def class_color(index: int) -> tuple[int, int, int]:
    """The colour of a class, RGB."""
    if index < len(COLORS):
        return COLORS[index]
    hue = (index * 0.61803398875) % 1  # the golden ratio: neighbours are far apart
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.6 + 0.15 * (index % 3 - 1), 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _tint(picture: np.ndarray, mask: np.ndarray, color: tuple[int, int, int]) -> None:
    cv2 = require("cv2", "vision")
    inside = cv2.resize(np.uint8(mask), (picture.shape[1], picture.shape[0]), interpolation=cv2.INTER_NEAREST)
    where = inside.astype(bool)
    picture[where] = np.uint8(0.55 * picture[where] + 0.45 * np.array(color))
    outlines, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, outlines, -1, color, round(unit(picture)), cv2.LINE_AA)


def _tag_place(
    draw: Any,
    font: Any,
    text: str,
    box: list[float],
    size: tuple[int, int],
    taken: list[tuple[float, float, float, float]],
) -> tuple[float, float, float, float]:
    """Place a label above the box, or inside it at the top or bottom, wherever it hides no other label; else above."""
    width, height = draw.textlength(text, font) + 6, font.size + 4
    left = min(max(box[0], 0), max(size[0] - width, 0))
    tops = [top for top in (box[1] - height, box[1], box[3] - height, box[3]) if 0 <= top <= size[1] - height]
    places = [(left, top, left + width, top + height) for top in tops or [max(box[1], 0)]]

    def hidden(place: tuple[float, float, float, float]) -> float:
        return sum(
            max(0.0, min(place[2], other[2]) - max(place[0], other[0]))
            * max(0.0, min(place[3], other[3]) - max(place[1], other[1]))
            for other in taken
        )

    return min(places, key=hidden)


def _legend(picture: np.ndarray, found: Detections, pil: Any, draw_module: Any, fonts: Any) -> np.ndarray:
    """Add a bar below the picture: colour, name and number of each class; those that do not fit are counted."""
    height, width = picture.shape[:2]
    one = unit(picture)
    bar = round(BAR * one)
    canvas = np.full((height + bar, max(width, 320), 3), BACKGROUND, np.uint8)
    canvas[:height, :width] = picture
    image = pil.fromarray(canvas)
    draw, font, middle = draw_module.Draw(image), fonts.load_default(round(17 * one)), height + bar // 2
    number = {label: int(index) for label, index in zip(found.labels, found.indices, strict=True)}
    counts = list(found.counts().items())
    if not counts:
        draw.text((16 * one, middle), "nothing found", FAINT, font, anchor="lm")
    left = 16 * one
    for place, (label, count) in enumerate(counts):
        text = f"{label}  {count}"
        rest = f"and {len(counts) - place} more" if place + 1 < len(counts) else ""
        room = draw.textlength(rest, font) + 20 * one if rest else 0
        if left + 22 * one + draw.textlength(text, font) + room > canvas.shape[1] - 8 * one:
            draw.text((left, middle), f"and {len(counts) - place} more", FAINT, font, anchor="lm")
            break
        draw.rounded_rectangle(
            (left, middle - 7 * one, left + 14 * one, middle + 7 * one), 3 * one, class_color(number[label])
        )
        draw.text((left + 22 * one, middle), text, INK, font, anchor="lm")
        left += 46 * one + round(draw.textlength(text, font))
    return np.array(image)
