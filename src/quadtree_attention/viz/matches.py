"""Matches drawn as lines between two images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.images import read_image
from ..errors import InputError
from ..extras import require
from .drawing import BACKGROUND, BAR, FAINT, GAP, INK, confidence_colors, shrunk, unit

if TYPE_CHECKING:
    from ..predict.matching import Matches

OUTLIER = (235, 87, 87)


def draw_matches(
    image0: Any,
    image1: Any,
    matches: Matches,
    inliers: np.ndarray | None = None,
    *,
    outliers: bool = True,
    max_lines: int = 200,
    max_side: int | None = None,
) -> np.ndarray:
    """Draw two images side by side with a line for each match, coloured by confidence.

    Args:
        image0, image1: any images that `data.images.read_image` takes; the ones that were matched.
        matches: what was found.
        inliers: bool ``[M]``; inliers are then drawn on top, outliers below in thin red.
        outliers: whether to draw outliers at all.
        max_lines: most lines drawn of inliers, and half as many of outliers; of more, a random choice that is always the same. Every
            inlier has its two dots.
        max_side: each image is shrunk until its longer side has at most this many pixels; None leaves it as it is.

    Returns:
        ``[H, W, 3]`` uint8 RGB.

    Raises:
        ValueError: inliers of another length than matches; bad images.
    """
    if inliers is not None and np.shape(inliers) != (len(matches),):
        raise InputError(f"inliers have shape {np.shape(inliers)}, expected ({len(matches)},): one for each match")
    cv2 = require("cv2", "vision")
    shown = [shrunk(read_image(image), max_side) for image in (image0, image1)]
    one = max(unit(picture, 800) for picture, _ in shown)
    gap = round(GAP * one)
    pictures, points, left = [], [], 0
    for (picture, scale), keypoints in zip(shown, (matches.keypoints0, matches.keypoints1), strict=True):
        pictures.append(picture)
        points.append((keypoints + 0.5) * scale - 0.5 + (left, 0))
        left += picture.shape[1] + gap
    height, width = max(picture.shape[0] for picture in pictures), max(left - gap, 640)
    canvas = np.full((height + round(BAR * one), width, 3), BACKGROUND, np.uint8)
    left = 0
    for picture in pictures:
        canvas[: picture.shape[0], left : left + picture.shape[1]] = (
            picture * 0.82
        )  # a little darker, so that lines stand out
        left += picture.shape[1] + gap

    good = np.ones(len(matches), bool) if inliers is None else np.asarray(inliers, bool)
    low, high = _range(matches.confidence)
    drawn = 0
    if outliers and not good.all():
        chosen = _some(np.flatnonzero(~good), max_lines // 2)
        over = canvas.copy()
        for i in chosen:
            _line(cv2, over, points[0][i], points[1][i], OUTLIER, one)
        canvas = cv2.addWeighted(over, 0.35, canvas, 0.65, 0)
        drawn += len(chosen)
    order = np.flatnonzero(good)
    order = order[np.argsort(matches.confidence[order], kind="stable")]  # the surest on top
    colors = confidence_colors(matches.confidence, low, high).tolist()
    lines = set(_some(order, max_lines).tolist())
    over = canvas.copy()
    for i in order:
        if i in lines:
            _line(cv2, over, points[0][i], points[1][i], colors[i], one)
    canvas = cv2.addWeighted(over, 0.6, canvas, 0.4, 0)
    for i in order:
        for point in (points[0][i], points[1][i]):
            cv2.circle(canvas, _fixed(point), round(44 * one), BACKGROUND, -1, cv2.LINE_AA, 4)
            cv2.circle(canvas, _fixed(point), round(30 * one), colors[i], -1, cv2.LINE_AA, 4)
    drawn += len(lines)
    return _legend(canvas, matches, inliers, drawn, (low, high), one)


def _range(confidence: np.ndarray) -> tuple[float, float]:
    """Ends of the colour scale: tenths around what there is."""
    if not len(confidence):
        return 0.0, 1.0
    low, high = np.floor(confidence.min() * 10) / 10, np.ceil(confidence.max() * 10) / 10
    return float(min(low, high - 0.1)), float(high)


def _some(indexes: np.ndarray, count: int) -> np.ndarray:
    if len(indexes) <= count:
        return indexes
    return np.sort(np.random.default_rng(0).choice(indexes, count, replace=False))


def _line(cv2: Any, canvas: np.ndarray, start: np.ndarray, end: np.ndarray, color: Any, one: float) -> None:
    cv2.line(canvas, _fixed(start), _fixed(end), color, round(one), cv2.LINE_AA, 4)


def _fixed(point: np.ndarray) -> tuple[int, int]:
    """Pixels with four binary places, as OpenCV draws them."""
    return round(float(point[0]) * 16), round(float(point[1]) * 16)


def _legend(
    canvas: np.ndarray, matches: Matches, inliers: np.ndarray | None, drawn: int, ends: tuple[float, float], one: float
) -> np.ndarray:
    pil, draw_module, fonts = (require(f"PIL.{name}", "vision") for name in ("Image", "ImageDraw", "ImageFont"))
    image = pil.fromarray(canvas)
    draw, font = draw_module.Draw(image), fonts.load_default(round(17 * one))
    height, width = canvas.shape[:2]
    middle = height - round(BAR * one) // 2

    counts = f"{len(matches):,} match" + ("" if len(matches) == 1 else "es")
    if inliers is not None:
        counts += f"   {int(np.sum(inliers)):,} inlier" + ("" if np.sum(inliers) == 1 else "s")
    draw.text((16 * one, middle), counts, INK, font, anchor="lm")
    if drawn < len(matches):
        left = 16 * one + draw.textlength(counts + "   ", font)
        draw.text((left, middle), f"{drawn:,} lines drawn", FAINT, font, anchor="lm")

    bar, thick, right = round(120 * one), round(8 * one), round(width - 16 * one)
    high = f"{ends[1]:.1f}"
    draw.text((right, middle), high, FAINT, font, anchor="rm")
    right -= round(draw.textlength(high, font) + 8 * one)
    ramp = confidence_colors(np.linspace(0, 1, bar), 0, 1)
    image.paste(pil.fromarray(np.broadcast_to(ramp, (thick, bar, 3)).copy()), (right - bar, middle - thick // 2))
    draw.text((right - bar - 8 * one, middle), f"confidence  {ends[0]:.1f}", FAINT, font, anchor="rm")
    return np.array(image)
