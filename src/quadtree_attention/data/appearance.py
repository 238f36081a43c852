"""Augments photographs without changing their geometry: occluders, light, blur, noise, compression."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from ..errors import check_fields


@dataclass(frozen=True)
class Appearance:
    """Strengths at difficulty 1, and the shares of images that are changed. The two images of a pair are changed independently.

    occluders: most occluders in an image. occluder_size: their largest radius, as a share of the shorter side.
    gamma: largest exponent; 1 / gamma is the smallest. contrast: largest factor, likewise. brightness: largest shift in 0..1, up or down.
    shade: depth of an uneven light over the image, 0..1. blur: standard deviation of a Gaussian in pixels, with the
    share ``blurred``. motion: length in pixels, with the share ``moved``. noise: standard deviation, of 0..1.
    jpeg: the lowest quality, with the share ``compressed``. inverted: share of negatives.
    """

    occluders: int = 3
    occluder_size: float = 0.2
    gamma: float = 1.8
    contrast: float = 1.6
    brightness: float = 0.15
    shade: float = 0.6
    blur: float = 1.5
    blurred: float = 0.3
    motion: int = 7
    moved: float = 0.1
    noise: float = 0.04
    jpeg: int = 30
    compressed: float = 0.2
    inverted: float = 0.02

    def __post_init__(self) -> None:
        shares = ("occluder_size", "brightness", "shade", "blurred", "moved", "noise", "compressed", "inverted")
        check_fields(
            self,
            dict.fromkeys(shares, (0, 1))
            | {
                "occluders": (0, 100),
                "gamma": (1, 10),
                "contrast": (1, 10),
                "blur": (0, 100),
                "motion": (0, 255),
                "jpeg": (0, 95),
            },
        )

    def occluder_counts(self, rng: np.random.Generator, difficulty: float) -> tuple[int, int]:
        """Draw the numbers of occluders in two images; half of all images have none."""
        most = round(self.occluders * difficulty)
        first, second = (int(max(0, n)) for n in rng.integers(-most, most + 1, 2))
        return first, second


def occlude(
    rng: np.random.Generator,
    image: np.ndarray,
    visible: np.ndarray,
    filler: np.ndarray,
    count: int,
    appearance: Appearance,
) -> None:
    """Paste polygons of ``filler``, sometimes of one grey, into ``image`` ``[H, W]`` uint8; ``visible`` becomes False there."""
    side = min(image.shape)
    for _ in range(count):
        corners = rng.integers(3, 9)
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
        radii = side * appearance.occluder_size * rng.uniform(0.3, 1.0) * rng.uniform(0.5, 1.0, corners)
        centre = rng.uniform(0, 1, 2) * image.shape[::-1]
        outline = np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None] + centre
        mask = np.zeros(image.shape, np.uint8)
        cv2.fillPoly(mask, [np.rint(outline).astype(np.int32)], 1)
        flat = rng.random() < 0.2
        np.copyto(image, np.uint8(rng.integers(256)) if flat else filler, where=mask.view(bool))
        visible[mask.view(bool)] = False


def change_appearance(
    rng: np.random.Generator, image: np.ndarray, appearance: Appearance, difficulty: float
) -> np.ndarray:
    """Change light, sharpness and noise of ``[H, W]`` uint8; returns float32 in 0..1 of the same shape."""

    def either_way(ratio: float) -> float:
        return float(ratio ** (difficulty * rng.uniform(-1, 1)))

    curve = np.linspace(0, 1, 256, dtype=np.float32) ** either_way(appearance.gamma)
    curve = (curve - 0.5) * either_way(appearance.contrast) + 0.5
    curve = curve + difficulty * appearance.brightness * rng.uniform(-1, 1)
    if rng.random() < appearance.inverted * difficulty:
        curve = 1 - curve
    if rng.random() < appearance.blurred:
        image = cv2.GaussianBlur(image, (0, 0), 0.3 + rng.uniform(0, appearance.blur) * difficulty)
    length = 2 * int(rng.uniform(0, appearance.motion) * difficulty / 2) + 1
    if rng.random() < appearance.moved and length > 1:
        image = cv2.filter2D(image, -1, _motion_kernel(length, rng.uniform(0, np.pi)))
    changed: np.ndarray = cv2.LUT(image, curve.clip(0, 1).astype(np.float32))
    depth = difficulty * appearance.shade * rng.uniform()
    light = (1 - depth * rng.uniform(0, 1, (3, 3))).astype(np.float32)
    changed *= cv2.resize(light, image.shape[::-1], interpolation=cv2.INTER_LINEAR)
    changed += difficulty * appearance.noise * np.float32(rng.uniform()) * _noise(rng, image.shape)
    np.clip(changed, 0, 1, out=changed)
    if rng.random() < appearance.compressed:
        quality = round(95 - (95 - appearance.jpeg) * difficulty * rng.uniform())
        _, code = cv2.imencode(".jpg", (changed * 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, quality])
        changed = np.asarray(cv2.imdecode(code, cv2.IMREAD_GRAYSCALE), np.float32) / 255
    return changed


def _noise(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Noise ``[H, W]`` float32 of mean 0 and deviation 1: sums of two random bytes, a tenth of the cost of a Gaussian."""
    dice = np.frombuffer(rng.bytes(2 * np.prod(shape)), np.uint8).reshape(2, *shape)
    total = np.add(dice[0], dice[1], dtype=np.float32)
    total -= 255
    total /= np.float32((2 * (256**2 - 1) / 12) ** 0.5)
    return total


def _motion_kernel(length: int, angle: float) -> np.ndarray:
    """A centred line ``[length, length]`` that sums to 1: no point moves on average."""
    kernel = np.zeros((length, length), np.float32)
    radius = length // 2
    x, y = np.cos(angle) * radius, np.sin(angle) * radius
    start, end = (round(radius - x), round(radius - y)), (round(radius + x), round(radius + y))
    cv2.line(kernel, start, end, 1.0)
    kernel += kernel[::-1, ::-1]  # the line is drawn in whole pixels, and off centre by a part of one
    return kernel / kernel.sum()
