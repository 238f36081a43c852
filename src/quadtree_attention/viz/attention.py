"""Where a point looks, level by level: the paper's figure for any photograph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.images import read_image
from ..errors import InputError
from ..extras import require
from .drawing import BACKGROUND, FAINT, GAP, INK, confidence_colors

if TYPE_CHECKING:
    from ..predict.attention import Patches, PointAttention

# Of levels, coarse to fine, and of the point: from Okabe and Ito's palette, which the colour-blind tell apart.
LEVELS = ((86, 180, 233), (240, 228, 66), (230, 159, 0), (204, 121, 167), (0, 178, 130))
POINT = (255, 255, 255)
TITLE, LINE, BAND = (
    30,
    26,
    0.09,
)  # pixels of a title and of a line of the legend; height of a row of stereo, as a share of its width


def draw_attention(image0: Any, image1: Any, seen: PointAttention, *, width: int = 1320) -> np.ndarray:
    """Draw a point of A with its patches, then what it looks at: all levels in one overlay, and each level by itself.

    What was compared with the point is shaded, violet for little attention to yellow for the most that a patch of that level got; what was not is
    grey. Patches that the next level looks into have an outline; of the mean of several heads, those that at least half of them keep. Along a row, as
    in stereo, images are cut to the row, and patches drawn as high as the cut.

    Args:
        image0, image1: A and B, as `predict.attention.image_attention` took them; without a B, None.
        seen: what `ImageAttention.at` found.
        width: of the picture in pixels.

    Returns:
        ``[H, width, 3]`` uint8 RGB.

    Raises:
        ValueError: a second image that is missing; bad images.
    """
    if seen.cross and image1 is None:
        raise InputError("the second image is missing, expected the one that was looked at")
    first = read_image(image0)
    second = read_image(image1) if seen.cross else first
    sheet = _Sheet(width)
    names = ("A", "B" if seen.cross else "A")
    in_row = seen.levels[0].grid[0] == 1 and len(seen.path.levels[0].key_grid) == 1
    query = f"The point of {names[0]}, and its patch at each level"
    overlay = f"All levels together, in {names[1]}"
    if in_row:
        sheet.row([_Panel(query, lambda size: _query_row(first, seen, size))], BAND)
        for number, level in enumerate(seen.levels, 1):
            sheet.row(
                [
                    _Panel(
                        _title(number, seen),
                        _row_painter(second, level, number, seen),
                        LEVELS[(number - 1) % len(LEVELS)],
                    )
                ],
                BAND,
            )
    else:
        sheet.row(
            [
                _Panel(query, lambda size: _query(first, seen, size), share=first.shape[1] / first.shape[0]),
                _Panel(overlay, lambda size: _overlay(second, seen, size), share=second.shape[1] / second.shape[0]),
            ]
        )
        share = second.shape[1] / second.shape[0]
        sheet.row(
            [
                _Panel(_title(number, seen), _painter(second, level, seen), LEVELS[(number - 1) % len(LEVELS)], share)
                for number, level in enumerate(seen.levels, 1)
            ]
        )
    return sheet.finish(seen)


class _Panel:
    """A title and what paints a picture of a given (width, height)."""

    def __init__(self, title: str, paint: Any, color: tuple[int, int, int] | None = None, share: float = 1.0) -> None:
        self.title, self.paint, self.color, self.share = title, paint, color, share


class _Sheet:
    """Rows of panels, one below the other, and a legend."""

    def __init__(self, width: int) -> None:
        self.width, self.rows = width, [np.full((GAP, width, 3), BACKGROUND, np.uint8)]
        self.pil, self.draw, self.fonts = (
            require(f"PIL.{name}", "vision") for name in ("Image", "ImageDraw", "ImageFont")
        )

    def row(self, panels: list[_Panel], band: float | None = None) -> None:
        """Panels of one height, side by side; ``band``: height of a single one, as a share of its width."""
        room = self.width - GAP * (len(panels) + 1)
        height = round(room * band) if band else round(room / sum(panel.share for panel in panels))
        image = self.pil.new("RGB", (self.width, TITLE + height + GAP), BACKGROUND)
        draw, left = self.draw.Draw(image), GAP
        for n, panel in enumerate(panels):
            width = room if band else round(height * panel.share)
            if n == len(panels) - 1:
                width = self.width - GAP - left
            start = left
            if panel.color is not None:
                draw.rectangle((left, 8, left + 12, 20), panel.color)
                start += 20
            font = self.fonts.load_default(16)
            title = panel.title
            while draw.textlength(title, font) > left + width - start and font.size > 11:
                font = self.fonts.load_default(font.size - 1)
            draw.text((start, TITLE // 2), title, INK, font, anchor="lm")
            image.paste(self.pil.fromarray(panel.paint((width, height))), (left, TITLE))
            left += width + GAP
        self.rows.append(np.array(image))

    def finish(self, seen: PointAttention) -> np.ndarray:
        """The whole sheet with the legend below."""
        image = self.pil.new("RGB", (self.width, 2 * LINE + GAP), BACKGROUND)
        draw, font = self.draw.Draw(image), self.fonts.load_default(15)
        ramp = confidence_colors(np.linspace(0, 1, 120), 0, 1)
        y, left = LINE // 2, GAP
        entries: list[tuple[Any, str]] = [
            (
                self.pil.fromarray(np.broadcast_to(ramp, (10, 120, 3)).copy()),
                "share of the level's attention, none to most",
            ),
            (
                "outline",
                "kept: the next level looks into it"
                + (" (half of the heads)" if seen.heads.startswith("mean") else ""),
            ),
            ("point", "the point"),
            ("grey", "not looked at"),
        ]
        for mark, text in entries:
            if isinstance(mark, str):
                size, box = 14, (left, y - 7, left + 14, y + 7)
                if mark == "outline":
                    draw.rectangle(box, outline=INK, width=2)
                elif mark == "point":
                    draw.ellipse(box, outline=POINT, width=3)
                else:
                    draw.rectangle(box, fill=(60, 62, 68))
            else:
                size = mark.width
                image.paste(mark, (left, y - 5))
            draw.text((left + size + 8, y), text, INK, font, anchor="lm")
            left += round(size + 8 + draw.textlength(text, font) + 26)
        text = f"Layer {seen.layer}, {seen.name}, {seen.heads}. {seen.cost[0].upper()}{seen.cost[1:]}"
        small = self.fonts.load_default(14)
        draw.text((GAP, y + LINE), text, FAINT, small, anchor="lm")
        return np.concatenate([*self.rows, np.array(image)])


def _title(number: int, seen: PointAttention) -> str:
    level = seen.levels[number - 1]
    total = level.grid[0] * level.grid[1]
    kept = int((level.kept >= 0.5).sum())
    last = number == len(seen.levels)
    more = "" if last else f", {kept} kept"
    return f"Level {number}: looks at {len(level):,} of {total:,} patches{more}"


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    pil = require("PIL.Image", "vision")
    return np.asarray(pil.fromarray(image).resize(size, pil.Resampling.BICUBIC))


def _dimmed(picture: np.ndarray) -> np.ndarray:
    """Grey and dark: what was not looked at."""
    gray = picture @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.repeat(np.uint8(18 + gray * 0.34)[..., None], 3, -1)


def _pixels(boxes: np.ndarray, image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes ``[N, 4]`` of an image in pixels of its resized copy, whole numbers."""
    scale = np.array([size[0] / image.shape[1], size[1] / image.shape[0]] * 2, np.float32)
    return np.rint(boxes * scale).astype(int)


def _colors(level: Patches) -> np.ndarray:
    """Colours of patches: by the root of their share, so that little is told from nothing."""
    most = max(float(level.scores.max(initial=0)), 1e-9)
    return confidence_colors(np.sqrt(level.scores / most), 0, 1)


def _shade(canvas: np.ndarray, picture: np.ndarray, boxes: np.ndarray, level: Patches) -> None:
    """Fill the boxes: the picture under the colour of their score, the more of it the higher that is."""
    most = max(float(level.scores.max(initial=0)), 1e-9)
    for n in np.argsort(level.scores, kind="stable"):
        x0, y0, x1, y1 = boxes[n]
        alpha = 0.3 + 0.42 * float(np.sqrt(level.scores[n] / most))
        part = picture[y0:y1, x0:x1]
        canvas[y0:y1, x0:x1] = np.uint8(part * (0.8 - 0.8 * alpha) + _colors(level)[n] * alpha)


def _outline(canvas: np.ndarray, boxes: np.ndarray, color: tuple[int, int, int], width: int) -> np.ndarray:
    pil, draw_module = require("PIL.Image", "vision"), require("PIL.ImageDraw", "vision")
    image = pil.fromarray(canvas)
    draw = draw_module.Draw(image)
    for x0, y0, x1, y1 in boxes.tolist():
        draw.rectangle((x0, y0, max(x1 - 1, x0), max(y1 - 1, y0)), outline=color, width=width)
    return np.array(image)


def _mark(canvas: np.ndarray, x: float, y: float) -> np.ndarray:
    """A white ring with a dark edge around a point, wide enough to leave its finest patch free."""
    cv2 = require("cv2", "vision")
    for radius, color, thick in ((17, BACKGROUND, 5), (17, POINT, 2)):
        cv2.circle(canvas, (round(x * 16), round(y * 16)), radius * 16, color, thick, cv2.LINE_AA, 4)
    return canvas


def _query(image: np.ndarray, seen: PointAttention, size: tuple[int, int]) -> np.ndarray:
    x, y = ((seen.point[n] + 0.5) * size[n] / image.shape[1 - n] for n in (0, 1))
    canvas = _mark(np.uint8(_resized(image, size) * 0.82), x, y)
    for number, level in enumerate(seen.levels):
        canvas = _outline(canvas, _pixels(level.query[None], image, size), LEVELS[number % len(LEVELS)], 2)
    return canvas


def _overlay(image: np.ndarray, seen: PointAttention, size: tuple[int, int]) -> np.ndarray:
    picture = _resized(image, size)
    canvas = np.uint8(picture * 0.82)
    finest = seen.levels[-1]
    _shade(canvas, picture, _pixels(finest.boxes, image, size), finest)
    for number, level in enumerate(seen.levels[:-1]):
        canvas = _outline(canvas, _pixels(level.boxes[level.kept >= 0.5], image, size), LEVELS[number % len(LEVELS)], 2)
    return canvas


def _painter(image: np.ndarray, level: Patches, seen: PointAttention) -> Any:
    def paint(size: tuple[int, int]) -> np.ndarray:
        picture = _resized(image, size)
        canvas = _dimmed(picture)
        boxes = _pixels(level.boxes, image, size)
        _shade(canvas, picture, boxes, level)
        canvas = _outline(canvas, boxes[level.kept >= 0.5], INK, 2)
        if not seen.cross:
            x, y = ((seen.point[n] + 0.5) * size[n] / image.shape[1 - n] for n in (0, 1))
            canvas = _mark(canvas, x, y)
        return canvas

    return paint


def _cut(image: np.ndarray, seen: PointAttention, size: tuple[int, int]) -> tuple[np.ndarray, float]:
    """The part of an image around the point's row that has the shape of ``size``, resized to it; and where the row is in it."""
    high = min(round(image.shape[1] * size[1] / size[0]), image.shape[0])
    top = int(np.clip(round(seen.point[1] - high / 2), 0, image.shape[0] - high))
    return _resized(image[top : top + high], size), (seen.point[1] + 0.5 - top) * size[1] / high


def _query_row(image: np.ndarray, seen: PointAttention, size: tuple[int, int]) -> np.ndarray:
    picture, y = _cut(image, seen, size)
    canvas = np.uint8(picture * 0.82)
    scale = size[0] / image.shape[1]
    for number, level in enumerate(seen.levels):
        x0, x1 = np.rint(level.query[[0, 2]] * scale).astype(int)
        inset = 3 * number
        canvas = _outline(
            canvas, np.array([[x0, inset, max(x1, x0 + 3), size[1] - inset]]), LEVELS[number % len(LEVELS)], 3
        )
    return _mark(canvas, (seen.point[0] + 0.5) * scale, y)


def _row_painter(image: np.ndarray, level: Patches, number: int, seen: PointAttention) -> Any:
    def paint(size: tuple[int, int]) -> np.ndarray:
        picture, _ = _cut(image, seen, size)
        canvas = _dimmed(picture)
        columns = np.rint(level.boxes[:, [0, 2]] * (size[0] / image.shape[1])).astype(int)
        boxes = np.stack([columns[:, 0], np.zeros(len(columns), int), columns[:, 1], np.full(len(columns), size[1])], 1)
        _shade(canvas, picture, boxes, level)
        return _outline(canvas, boxes[level.kept >= 0.5], INK, 2)

    return paint
