"""Moving pictures: the second photograph laid over the first, and a scene of a stereo pair that turns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.images import read_image
from ..data.stereo.calibration import StereoCamera
from ..errors import InputError
from ..extras import require
from ..files import atomic_write
from .drawing import BACKGROUND, BAR, FAINT, INK, shrunk

if TYPE_CHECKING:
    from ..predict.stereo import Stereo

POINTS = 400_000  # most points of a turning scene


def warp_onto(image0: Any, image1: Any, homography: np.ndarray) -> np.ndarray:
    """Image 1 as image 0 would show it, ``[H0, W0, 4]`` uint8 RGBA; transparent where it shows nothing of it.

    homography: ``[3, 3]``, pixels of image 0 to those of image 1, as `Matches.geometry` gives it.
    """
    cv2 = require("cv2", "vision")
    from ..data.warp import warped_view

    first, second = read_image(image0), read_image(image1)
    size = first.shape[:2]
    seen = warped_view(second, homography, size, cv2.BORDER_CONSTANT)
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    alpha = cv2.warpPerspective(np.full(second.shape[:2], 255, np.uint8), homography, size[::-1], flags=flags)
    return np.dstack([seen, alpha])


def blend_frames(
    image0: Any, image1: Any, homography: np.ndarray, *, steps: int = 12, max_side: int = 640
) -> list[np.ndarray]:
    """Frames that go from image 0 to image 1 laid over it and back, so that what does not fit is seen to jump; what each shows stands below.

    Args:
        image0, image1: any images that `data.images.read_image` takes.
        homography: ``[3, 3]``, pixels of image 0 to those of image 1.
        steps: frames from one image to the other.
        max_side: of image 0, in pixels.

    Returns:
        ``2 * steps`` frames ``[H, W, 3]`` uint8 RGB, for `save_animation`.
    """
    if steps < 2:
        raise InputError(f"steps is {steps}, expected at least 2")
    over = warp_onto(image0, image1, homography)
    first, _ = shrunk(read_image(image0), max_side)
    size = first.shape[1::-1]
    cv2 = require("cv2", "vision")
    over = cv2.resize(over, size, interpolation=cv2.INTER_AREA)
    alpha = over[..., 3:].astype(np.float32) / 255
    frames = []
    for n in range(2 * steps):
        share = (1 - np.cos(np.pi * n / steps)) / 2  # slow at both ends
        mixed = first + alpha * share * (over[..., :3] - first.astype(np.float32))
        frames.append(_captioned(np.uint8(np.rint(mixed)), "A", "B laid over A", float(share)))
    return frames


def turntable_frames(
    stereo: Stereo,
    image: Any,
    camera: StereoCamera | None = None,
    *,
    steps: int = 36,
    degrees: float = 8.0,
    max_side: int = 480,
) -> list[np.ndarray]:
    """Frames of the scene turning to either side and back. Only what the photograph shows is there: behind it is nothing.

    Args:
        stereo: what was found.
        image: the view that the disparity is of.
        camera: of that view; without one, a focal length of 1.2 times the width is taken, and depths are in proportion to each other only.
        steps: frames of a whole swing.
        degrees: of the turn to either side.
        max_side: of the frames, in pixels.

    Returns:
        ``steps`` frames ``[H, W, 3]`` uint8 RGB, for `save_animation`.
    """
    if steps < 2:
        raise InputError(f"steps is {steps}, expected at least 2")
    height, width = stereo.disparity.shape
    known = camera is not None
    camera = (camera or StereoCamera(1.2 * width, 1.0)).of_images((width, height))
    places, colors = stereo.points(image, camera)
    if not len(places):
        raise InputError("the pair shows no point in both views, expected a scene with disparities above 0")
    far = np.percentile(places[:, 2], 98)
    near = places[:, 2] <= far
    places, colors = places[near], colors[near]
    if len(places) > POINTS:
        rows = np.random.default_rng(0).choice(len(places), POINTS, replace=False)
        places, colors = places[rows], colors[rows]
    scale = min(max_side / max(height, width), 1.0)
    size = max(round(height * scale), 32), max(round(width * scale), 32)
    pivot = np.array([0, 0, np.median(places[:, 2])], np.float32)
    focal = camera.focal * scale
    frames = []
    for n in range(steps):
        turn = np.deg2rad(degrees) * np.sin(2 * np.pi * n / steps)
        cosine, sine = np.cos(turn), np.sin(turn)
        turned = (places - pivot) @ np.array([[cosine, 0, -sine], [0, 1, 0], [sine, 0, cosine]], np.float32) + pivot
        seen = _splat(turned, colors, focal, size)
        text = "" if known else ", depths relative: no calibration"
        frames.append(_captioned(seen, f"turned by {np.rad2deg(turn):+.0f} degrees{text}"))
    return frames


def save_animation(frames: Sequence[np.ndarray], path: str | Path, *, seconds: float = 3.0) -> None:
    """Write frames ``[H, W, 3]`` uint8 RGB to a .gif or an animated .webp that goes on for ever; it is whole or not there."""
    pil = require("PIL.Image", "vision")
    images = [pil.fromarray(frame) for frame in frames]
    each = max(20, round(1000 * seconds / len(images)))
    options: dict[str, Any] = {"save_all": True, "append_images": images[1:], "duration": each, "loop": 0}
    if Path(path).suffix.lower() == ".webp":
        options["quality"] = 80
    with atomic_write(path) as temporary:
        images[0].save(temporary, **options)


def _splat(places: np.ndarray, colors: np.ndarray, focal: float, size: tuple[int, int]) -> np.ndarray:
    """Points ``[N, 3]`` as a camera at the origin sees them: near ones over far ones, holes of a pixel filled from their neighbours."""
    height, width = size
    ahead = places[:, 2] > 1e-6
    places, colors = places[ahead], colors[ahead]
    x = np.rint(places[:, 0] * focal / places[:, 2] + (width - 1) / 2).astype(int)
    y = np.rint(places[:, 1] * focal / places[:, 2] + (height - 1) / 2).astype(int)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    order = np.argsort(-places[inside, 2], kind="stable")  # the nearest are written last
    x, y, colors = x[inside][order], y[inside][order], colors[inside][order]
    picture = np.zeros((height, width, 3), np.uint8)
    filled = np.zeros((height, width), np.uint8)
    picture[y, x], filled[y, x] = colors, 1
    cv2 = require("cv2", "vision")
    for _ in range(2):
        grown = cv2.dilate(picture, np.ones((3, 3), np.uint8))
        around = cv2.filter2D(filled, -1, np.ones((3, 3), np.uint8)) >= 4
        holes = (filled == 0) & around
        picture[holes], filled[holes] = grown[holes], 1
    picture[filled == 0] = BACKGROUND
    return picture


def _captioned(picture: np.ndarray, left: str, right: str = "", share: float | None = None) -> np.ndarray:
    """A picture with words below it, and between two of them a bar that says how far it is from one to the other."""
    height, width = picture.shape[:2]
    canvas = np.full((height + BAR, max(width, 320), 3), BACKGROUND, np.uint8)
    canvas[:height, :width] = picture
    pil, draw_module, fonts = (require(f"PIL.{name}", "vision") for name in ("Image", "ImageDraw", "ImageFont"))
    image = pil.fromarray(canvas)
    draw, font, middle = draw_module.Draw(image), fonts.load_default(16), height + BAR // 2
    draw.text((16, middle), left, INK if share is None or share < 0.5 else FAINT, font, anchor="lm")
    if share is not None:
        start = 24 + draw.textlength(left, font)
        draw.line((start, middle, start + 80, middle), FAINT, 2)
        place = start + 80 * share
        draw.ellipse((place - 5, middle - 5, place + 5, middle + 5), INK)
        draw.text((start + 92, middle), right, INK if share >= 0.5 else FAINT, font, anchor="lm")
    return np.array(image)
