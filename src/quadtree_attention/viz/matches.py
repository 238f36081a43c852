"""Draws matches as lines between two images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from ..data.images import read_image
from ..errors import InputError
from ..extras import require
from ..files import printable
from .drawing import BACKGROUND, BAR, FAINT, GAP, INK, confidence_colors, shrunk, unit

if TYPE_CHECKING:
    from ..predict.matches import Matches

OUTLIER = (255, 110, 40)  # told from the scale of confidence by the colour-blind too
Lines = Literal["normal", "thin", "none"]
Layout = Literal["beside", "above"]


def draw_matches(
    image0: Any,
    image1: Any,
    matches: Matches,
    inliers: np.ndarray | None = None,
    *,
    outliers: bool = True,
    max_lines: int = 200,
    max_side: int | None = None,
    top: int | None = None,
    lines: Lines = "normal",
    layout: Layout = "beside",
    labels: tuple[str, str] | None = None,
) -> np.ndarray:
    """Draw two images with a line for each match, coloured by confidence.

    Args:
        image0, image1: the images that were matched, in any form that `data.images.read_image` takes.
        matches: their matches.
        inliers: bool ``[M]``; inliers are then drawn on top, and outliers below in thin red.
        outliers: whether to draw outliers.
        max_lines: draw at most this many lines for inliers, and half as many for outliers, chosen at random with a fixed seed. Every
            inlier gets its two dots.
        max_side: each image is shrunk until its longer side has at most this many pixels; None leaves it as it is.
        top: draw only so many matches, the surest, of inliers if there are any; None: all.
        lines: "normal", "thin", or "none" for points alone.
        layout: images "beside" each other, or the first one "above" the second.
        labels: names of both images, to stand in their corners; None: none.

    Returns:
        ``[H, W, 3]`` uint8 RGB.

    Raises:
        ValueError: inliers and matches differ in length; an unknown option; bad images.
    """
    if inliers is not None and np.shape(inliers) != (len(matches),):
        raise InputError(f"inliers have shape {np.shape(inliers)}, expected ({len(matches)},): one for each match")
    for name, value, kind in (("lines", lines, Lines), ("layout", layout, Layout)):
        if value not in get_args(kind):
            raise InputError(f"{name} is {value!r}, expected one of {', '.join(get_args(kind))}")
    if top is not None and top < 1:
        raise InputError(f"top is {top}, expected at least 1")
    cv2 = require("cv2", "vision")
    shown = [shrunk(read_image(image), max_side) for image in (image0, image1)]
    one = max(unit(picture, 800) for picture, _ in shown)
    canvas, corners = _canvas([picture for picture, _ in shown], layout, one)
    points = [
        (keypoints + 0.5) * scale - 0.5 + corner
        for (_, scale), keypoints, corner in zip(shown, (matches.keypoints0, matches.keypoints1), corners, strict=True)
    ]
    good = np.ones(len(matches), bool) if inliers is None else np.asarray(inliers, bool)
    bad = ~good if outliers and inliers is not None else np.zeros(len(matches), bool)
    if top is not None:
        bad &= False
        surest = np.flatnonzero(good)
        surest = surest[np.argsort(-matches.confidence[surest], kind="stable")][:top]
        good = np.isin(np.arange(len(matches)), surest)
    low, high = _range(matches.confidence)
    if bad.any() and lines != "none":
        over = canvas.copy()
        for i in _sample(np.flatnonzero(bad), max_lines // 2):
            _line(cv2, over, points[0][i], points[1][i], OUTLIER, one)
        canvas = cv2.addWeighted(over, 0.35, canvas, 0.65, 0)
    order = np.flatnonzero(good)
    order = order[np.argsort(matches.confidence[order], kind="stable")]  # the most confident on top
    colors = confidence_colors(matches.confidence, low, high).tolist()
    drawn = set() if lines == "none" else set(_sample(order, max_lines).tolist())
    over = canvas.copy()
    for i in order:
        if i in drawn:
            _line(cv2, over, points[0][i], points[1][i], colors[i], one if lines == "normal" else 1)
    share = 0.6 if lines == "normal" else 0.4
    canvas = cv2.addWeighted(over, share, canvas, 1 - share, 0)
    radius = 30 if lines != "thin" else 18
    for i in order:
        for point in (points[0][i], points[1][i]):
            cv2.circle(canvas, _fixed(point), round((radius + 14) * one), BACKGROUND, -1, cv2.LINE_AA, 4)
            cv2.circle(canvas, _fixed(point), round(radius * one), colors[i], -1, cv2.LINE_AA, 4)
    if lines == "none" and bad.any():  # crosses, which no dot of the scale can be taken for
        for i in np.flatnonzero(bad):
            for point in (points[0][i], points[1][i]):
                cv2.drawMarker(
                    canvas, (round(point[0]), round(point[1])), OUTLIER, cv2.MARKER_TILTED_CROSS, round(6 * one)
                )
    count = len(drawn) + (min(int(bad.sum()), max_lines // 2) if lines != "none" else 0)
    return _legend(
        canvas, matches, inliers, count if lines != "none" else None, (low, high), one, bool(bad.any()), labels, corners
    )


def _canvas(pictures: list[np.ndarray], layout: Layout, one: float) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Both images, a little darker so that lines stand out, and room for a legend; and the left upper corners (x, y) of the images."""
    gap, bar = round(GAP * one), round(BAR * one)
    heights, widths = [picture.shape[0] for picture in pictures], [picture.shape[1] for picture in pictures]
    if layout == "beside":
        height, width, corners = max(heights), sum(widths) + gap, [(0, 0), (widths[0] + gap, 0)]
    else:
        height, width, corners = sum(heights) + gap, max(widths), [(0, 0), (0, heights[0] + gap)]
    canvas = np.full((height + bar, max(width, 640), 3), BACKGROUND, np.uint8)
    for picture, (left, top) in zip(pictures, corners, strict=True):
        canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture * 0.82
    return canvas, corners


def _range(confidence: np.ndarray) -> tuple[float, float]:
    """The ends of the colour scale, rounded to tenths."""
    if not len(confidence):
        return 0.0, 1.0
    low, high = np.floor(confidence.min() * 10) / 10, np.ceil(confidence.max() * 10) / 10
    return float(min(low, high - 0.1)), float(high)


def _sample(indexes: np.ndarray, count: int) -> np.ndarray:
    if len(indexes) <= count:
        return indexes
    return np.sort(np.random.default_rng(0).choice(indexes, count, replace=False))


def _line(cv2: Any, canvas: np.ndarray, start: np.ndarray, end: np.ndarray, color: Any, one: float) -> None:
    cv2.line(canvas, _fixed(start), _fixed(end), color, round(one), cv2.LINE_AA, 4)


def _fixed(point: np.ndarray) -> tuple[int, int]:
    """Fixed-point pixels with four fractional bits, as OpenCV takes them."""
    return round(float(point[0]) * 16), round(float(point[1]) * 16)


def _legend(
    canvas: np.ndarray,
    matches: Matches,
    inliers: np.ndarray | None,
    drawn: int | None,
    ends: tuple[float, float],
    one: float,
    outliers: bool,
    labels: tuple[str, str] | None,
    corners: list[tuple[int, int]],
) -> np.ndarray:
    pil, draw_module, fonts = (require(f"PIL.{name}", "vision") for name in ("Image", "ImageDraw", "ImageFont"))
    image = pil.fromarray(canvas)
    draw, font = draw_module.Draw(image), fonts.load_default(round(17 * one))
    height, width = canvas.shape[:2]
    middle = height - round(BAR * one) // 2
    for label, (left, top) in zip(labels or (), corners, strict=False):
        label = printable(label)
        box = (left, top, left + draw.textlength(label, font) + 16 * one, top + 28 * one)
        draw.rectangle(box, BACKGROUND)
        draw.text((left + 8 * one, top + 14 * one), label, INK, font, anchor="lm")

    counts = f"{len(matches):,} match" + ("" if len(matches) == 1 else "es")
    if inliers is not None:
        counts += f"   {int(np.sum(inliers)):,} inlier" + ("" if np.sum(inliers) == 1 else "s")
    draw.text((16 * one, middle), counts, INK, font, anchor="lm")
    left = 16 * one + draw.textlength(counts + "   ", font)
    if drawn is not None and drawn < len(matches):
        text = f"{drawn:,} lines drawn"
        draw.text((left, middle), text, FAINT, font, anchor="lm")
        left += draw.textlength(text + "   ", font)
    if outliers:
        draw.line((left, middle, left + 18 * one, middle), OUTLIER, round(3 * one))
        draw.text((left + 24 * one, middle), "outlier", FAINT, font, anchor="lm")

    bar, thick, right = round(120 * one), round(8 * one), round(width - 16 * one)
    high = f"{ends[1]:.1f}"
    draw.text((right, middle), high, FAINT, font, anchor="rm")
    right -= round(draw.textlength(high, font) + 8 * one)
    ramp = confidence_colors(np.linspace(0, 1, bar), 0, 1)
    image.paste(pil.fromarray(np.broadcast_to(ramp, (thick, bar, 3)).copy()), (right - bar, middle - thick // 2))
    draw.text((right - bar - 8 * one, middle), f"confidence  {ends[0]:.1f}", FAINT, font, anchor="rm")
    return np.array(image)
