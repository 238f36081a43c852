"""Pictures of results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .data.images import read_image
from .extras import require
from .files import atomic_write
from .predict import Classification, Matches
from .predict_stereo import Stereo
from .table import Table

GAP, BAR = 12, 44  # pixels between the images, and of the legend below them
BACKGROUND = (18, 20, 26)
INK, FAINT = (232, 234, 240), (150, 155, 168)
OUTLIER = (235, 87, 87)
# Anchors of the colour scale for confidence, low to high, about equally far apart to the eye and all bright enough to stand out.
SCALE = np.array([(123, 97, 255), (56, 149, 255), (36, 205, 196), (122, 230, 110), (255, 236, 92)], np.float64)


def confidence_colors(confidence: np.ndarray, low: float, high: float) -> np.ndarray:
    """Colours ``[M, 3]`` uint8 RGB of confidences ``[M]``: violet at ``low`` and below, over blue and green, to yellow at ``high``."""
    place = np.clip((confidence - low) / max(high - low, 1e-9), 0, 1) * (len(SCALE) - 1)
    anchors = np.arange(len(SCALE))
    return np.stack([np.interp(place, anchors, SCALE[:, channel]) for channel in range(3)], -1).round().astype(np.uint8)


def draw_matches(
    image0: Any,
    image1: Any,
    matches: Matches,
    inliers: np.ndarray | None = None,
    *,
    outliers: bool = True,
    max_lines: int = 200,
    max_side: int = 800,
) -> np.ndarray:
    """Draw two images side by side with a line for each match, coloured by confidence.

    Args:
        image0, image1: any images that `data.images.read_image` takes; the ones that were matched.
        matches: what was found.
        inliers: bool ``[M]``; inliers are then drawn on top, outliers below in thin red.
        outliers: whether to draw outliers at all.
        max_lines: most lines drawn of inliers, and half as many of outliers; of more, a random choice that is always the same. Every
            inlier has its two dots.
        max_side: each image is shrunk until its longer side has at most this many pixels.

    Returns:
        ``[H, W, 3]`` uint8 RGB.

    Raises:
        ValueError: inliers of another length than matches; bad images.
    """
    if inliers is not None and np.shape(inliers) != (len(matches),):
        raise ValueError(f"inliers have shape {np.shape(inliers)}, expected ({len(matches)},): one for each match")
    cv2 = require("cv2", "vision")
    pictures, points, left = [], [], 0
    for image, keypoints in ((image0, matches.keypoints0), (image1, matches.keypoints1)):
        picture, scale = _shrunk(read_image(image), max_side)
        pictures.append(picture)
        points.append((keypoints + 0.5) * scale - 0.5 + (left, 0))
        left += picture.shape[1] + GAP
    height, width = max(picture.shape[0] for picture in pictures), max(left - GAP, 640)
    canvas = np.full((height + BAR, width, 3), BACKGROUND, np.uint8)
    left = 0
    for picture in pictures:
        canvas[: picture.shape[0], left : left + picture.shape[1]] = (
            picture * 0.82
        )  # a little darker, so that lines stand out
        left += picture.shape[1] + GAP

    good = np.ones(len(matches), bool) if inliers is None else np.asarray(inliers, bool)
    low, high = _range(matches.confidence)
    drawn = 0
    if outliers and not good.all():
        chosen = _some(np.flatnonzero(~good), max_lines // 2)
        over = canvas.copy()
        for i in chosen:
            _line(cv2, over, points[0][i], points[1][i], OUTLIER)
        canvas = cv2.addWeighted(over, 0.35, canvas, 0.65, 0)
        drawn += len(chosen)
    order = np.flatnonzero(good)
    order = order[np.argsort(matches.confidence[order], kind="stable")]  # the surest on top
    colors = confidence_colors(matches.confidence, low, high).tolist()
    lines = set(_some(order, max_lines).tolist())
    over = canvas.copy()
    for i in order:
        if i in lines:
            _line(cv2, over, points[0][i], points[1][i], colors[i])
    canvas = cv2.addWeighted(over, 0.6, canvas, 0.4, 0)
    for i in order:
        for point in (points[0][i], points[1][i]):
            cv2.circle(canvas, _fixed(point), 44, BACKGROUND, -1, cv2.LINE_AA, 4)
            cv2.circle(canvas, _fixed(point), 30, colors[i], -1, cv2.LINE_AA, 4)
    drawn += len(lines)
    return _legend(canvas, matches, inliers, drawn, (low, high))


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
        raise ValueError(f"got {len(images)} images and {len(found)} results, expected as many of one as of the other")
    pil, draw_module, fonts = (require(f"PIL.{name}", "vision") for name in ("Image", "ImageDraw", "ImageFont"))
    columns = min(len(images), max(1, round(len(images) ** 0.5)), 6)
    line, font = 18, fonts.load_default(13)
    height = tile + line * max(map(len, found)) + 2 * GAP
    sheet = pil.new("RGB", (columns * (tile + GAP) + GAP, -(-len(images) // columns) * height + GAP), BACKGROUND)
    draw = draw_module.Draw(sheet)
    for n, (image, one) in enumerate(zip(images, found, strict=True)):
        left, top = GAP + n % columns * (tile + GAP), GAP + n // columns * height
        picture = pil.fromarray(_shrunk(read_image(image), tile)[0])
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


def draw_disparity(stereo: Stereo, *, max_side: int = 1000) -> np.ndarray:
    """Draw a disparity map in OpenCV's viridis, whose steps look even, near things bright; hidden pixels are hatched; a scale below.

    The scale spans the 1st to the 99th percentile of what both views show.

    Returns:
        ``[H, W, 3]`` uint8 RGB, shrunk until its longer side has at most ``max_side`` pixels.
    """
    cv2 = require("cv2", "vision")
    height, width = stereo.disparity.shape
    factor = min(max_side / max(height, width), 1)
    size = max(round(width * factor), 1), max(round(height * factor), 1)
    disparity = cv2.resize(stereo.disparity, size, interpolation=cv2.INTER_NEAREST)
    hidden = cv2.resize(np.uint8(stereo.occlusion > 0.5), size, interpolation=cv2.INTER_NEAREST).astype(bool)
    seen = disparity[~hidden] if not hidden.all() else disparity.ravel()
    low, high = np.percentile(seen, (1, 99))
    high = max(float(high), float(low) + 1e-3)

    def colors(values: np.ndarray) -> np.ndarray:
        shades = np.uint8(np.rint(255 * np.clip((values - low) / (high - low), 0, 1)))
        return cv2.applyColorMap(shades, cv2.COLORMAP_VIRIDIS)[..., ::-1]

    canvas = np.full((size[1] + BAR, max(size[0], 320), 3), BACKGROUND, np.uint8)
    picture = colors(disparity)
    rows, columns = np.indices(hidden.shape)
    dark, light = hidden & ((rows + columns) % 6 < 3), hidden & ((rows + columns) % 6 >= 3)
    picture[dark] = np.uint8(picture[dark] * 0.25)
    picture[light] = np.uint8(picture[light] * 0.55)
    canvas[: size[1], : size[0]] = picture

    pil, draw_module, fonts = (require(f"PIL.{name}", "vision") for name in ("Image", "ImageDraw", "ImageFont"))
    image = pil.fromarray(canvas)
    draw, font, middle = draw_module.Draw(image), fonts.load_default(17), canvas.shape[0] - BAR // 2
    left = f"{low:.1f}"
    draw.text((16, middle), left, INK, font, anchor="lm")
    start = 24 + round(draw.textlength(left, font))
    ramp = colors(np.linspace(low, high, 100, dtype=np.float32)[None])
    image.paste(pil.fromarray(np.ascontiguousarray(np.broadcast_to(ramp, (8, 100, 3)))), (start, middle - 4))
    draw.text((start + 108, middle), f"{high:.1f} px   hidden: hatched", INK, font, anchor="lm")
    return np.array(image)


def save_picture(picture: np.ndarray, path: str | Path) -> None:
    """Write ``[H, W, 3]`` uint8 RGB to an image file, whole or not at all; the suffix says the format."""
    image = require("PIL.Image", "vision").fromarray(picture)
    with atomic_write(path) as temporary:
        image.save(temporary, **({} if temporary.suffix == ".png" else {"quality": 92}))


def save_chart(table: Table, path: str | Path) -> None:
    """Draw what `bench.compare` measured, forward and backward: time and memory over tokens, one line a method, both axes logarithmic.

    The suffix of ``path`` says the format: .png, .svg or .pdf. The file is written whole or not at all.
    """
    figure = require("matplotlib.figure", "bench").Figure(figsize=(9, 4), layout="constrained")
    panels = {"ms": "time, ms"}
    if any(row["MB"] is not None for row in table.rows):
        panels["MB"] = "memory beyond the inputs, MB"
    rows = [row for row in table.rows if row["pass"] != "forward"]
    for axes, (name, label) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for method in dict.fromkeys(row["method"] for row in rows):
            mine = sorted((_tokens(row["tokens"]), row[name]) for row in rows if row["method"] == method)
            mine = [(x, y) for x, y in mine if y is not None and y > 0]
            main = method == "quadtree"
            axes.plot(
                *zip(*mine, strict=True),
                marker="o",
                label=method,
                linewidth=2.5 if main else 1.2,
                zorder=3 if main else 2,
            )
        axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel=label)
        axes.grid(True, which="both", alpha=0.25)
    figure.axes[0].legend()
    figure.suptitle(f"Forward and backward, {table.settings['machine']}", fontsize=10)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _tokens(grid: str) -> int:
    height, width = map(int, grid.split("x"))
    return height * width


def _shrunk(image: np.ndarray, max_side: int) -> tuple[np.ndarray, tuple[float, float]]:
    """Unlike `resize_longest` takes images of any size."""
    height, width = image.shape[:2]
    factor = min(max_side / max(height, width), 1)
    size = max(round(width * factor), 1), max(round(height * factor), 1)
    pil = require("PIL.Image", "vision")
    return np.asarray(pil.fromarray(image).resize(size, pil.Resampling.BICUBIC)), (size[0] / width, size[1] / height)


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


def _line(cv2: Any, canvas: np.ndarray, start: np.ndarray, end: np.ndarray, color: Any) -> None:
    cv2.line(canvas, _fixed(start), _fixed(end), color, 1, cv2.LINE_AA, 4)


def _fixed(point: np.ndarray) -> tuple[int, int]:
    """Pixels with four binary places, as OpenCV draws them."""
    return round(float(point[0]) * 16), round(float(point[1]) * 16)


def _legend(
    canvas: np.ndarray, matches: Matches, inliers: np.ndarray | None, drawn: int, ends: tuple[float, float]
) -> np.ndarray:
    pil, draw_module, fonts = (require(f"PIL.{name}", "vision") for name in ("Image", "ImageDraw", "ImageFont"))
    image = pil.fromarray(canvas)
    draw, font = draw_module.Draw(image), fonts.load_default(17)
    height, width = canvas.shape[:2]
    middle = height - BAR // 2

    counts = f"{len(matches):,} match" + ("" if len(matches) == 1 else "es")
    if inliers is not None:
        counts += f"   {int(np.sum(inliers)):,} inlier" + ("" if np.sum(inliers) == 1 else "s")
    draw.text((16, middle), counts, INK, font, anchor="lm")
    if drawn < len(matches):
        draw.text(
            (16 + draw.textlength(counts + "   ", font), middle), f"{drawn:,} lines drawn", FAINT, font, anchor="lm"
        )

    bar, right = 120, width - 16
    high = f"{ends[1]:.1f}"
    draw.text((right, middle), high, FAINT, font, anchor="rm")
    right -= round(draw.textlength(high, font)) + 8
    ramp = confidence_colors(np.linspace(0, 1, bar), 0, 1)
    image.paste(pil.fromarray(np.broadcast_to(ramp, (8, bar, 3)).copy()), (right - bar, middle - 4))
    draw.text((right - bar - 8, middle), f"confidence  {ends[0]:.1f}", FAINT, font, anchor="rm")
    return np.array(image)
