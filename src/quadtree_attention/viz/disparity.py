"""Draws disparity in colours, with hidden pixels hatched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..extras import require
from .drawing import BACKGROUND, BAR, INK, unit

if TYPE_CHECKING:
    from ..predict.stereo import Stereo


def draw_disparity(stereo: Stereo, *, max_side: int | None = None) -> np.ndarray:
    """Draw a disparity map in OpenCV's viridis, near things bright, hidden pixels hatched, with a scale below.

    The scale spans the 1st to the 99th percentile of the pixels that both views show.

    Returns:
        ``[H, W, 3]`` uint8 RGB, shrunk until its longer side has at most ``max_side`` pixels; None leaves it as it is.
    """
    cv2 = require("cv2", "vision")
    height, width = stereo.disparity.shape
    factor = 1 if max_side is None else min(max_side / max(height, width), 1)
    size = max(round(width * factor), 1), max(round(height * factor), 1)
    disparity = cv2.resize(stereo.disparity, size, interpolation=cv2.INTER_NEAREST)
    hidden = cv2.resize(np.uint8(stereo.occlusion > 0.5), size, interpolation=cv2.INTER_NEAREST).astype(bool)
    seen = disparity[~hidden] if not hidden.all() else disparity.ravel()
    low, high = np.percentile(seen, (1, 99))
    high = max(float(high), float(low) + 1e-3)

    def colors(values: np.ndarray) -> np.ndarray:
        shades = np.uint8(np.rint(255 * np.clip((values - low) / (high - low), 0, 1)))
        return cv2.applyColorMap(shades, cv2.COLORMAP_VIRIDIS)[..., ::-1]

    one = unit(disparity)
    bar, period = round(BAR * one), round(6 * one)
    canvas = np.full((size[1] + bar, max(size[0], 320), 3), BACKGROUND, np.uint8)
    picture = colors(disparity)
    rows, columns = np.indices(hidden.shape)
    first = (rows + columns) % period < period / 2
    dark, light = hidden & first, hidden & ~first
    picture[dark] = np.uint8(picture[dark] * 0.25)
    picture[light] = np.uint8(picture[light] * 0.55)
    canvas[: size[1], : size[0]] = picture

    pil, draw_module, fonts = (require(f"PIL.{name}", "vision") for name in ("Image", "ImageDraw", "ImageFont"))
    image = pil.fromarray(canvas)
    draw, font, middle = draw_module.Draw(image), fonts.load_default(round(17 * one)), canvas.shape[0] - bar // 2
    left = f"{low:.1f}"
    draw.text((16 * one, middle), left, INK, font, anchor="lm")
    start = round(24 * one + draw.textlength(left, font))
    thick, long = round(8 * one), round(100 * one)
    ramp = colors(np.linspace(low, high, long, dtype=np.float32)[None])
    image.paste(
        pil.fromarray(np.ascontiguousarray(np.broadcast_to(ramp, (thick, long, 3)))), (start, middle - thick // 2)
    )
    draw.text((start + long + 8 * one, middle), f"{high:.1f} px   hidden: hatched", INK, font, anchor="lm")
    return np.array(image)
