"""The three steps of refining on a CPU, by Numba kernels: arrays in, arrays out. `refinement_torch` says what they do."""

from __future__ import annotations

from functools import partial

import numpy as np

from ..ops.threads import run
from .refinement_kernels import align_rows, corner_rows, field_rows
from .refinement_torch import CORNER, FACTOR, FLAT, NOISE, PRIOR, PULL, REACH, ROUNDS, STEPS, STIFFNESS, window


class CpuSteps:
    """The three steps of refining, on a CPU.

    Args:
        gray0, gray1: float32 ``[H, W]`` in 0..1.
    """

    def __init__(self, gray0: np.ndarray, gray1: np.ndarray) -> None:
        self.gray0, self.gray1 = (np.ascontiguousarray(gray, np.float32) for gray in (gray0, gray1))

    def local_maps(
        self, points0: np.ndarray, points1: np.ndarray, weights: np.ndarray, radius: float, first: float, last: float
    ) -> np.ndarray:
        """See `refinement_torch.local_maps`."""
        return local_maps_on_cpu(points0, points1, weights, radius, first, last)

    def distinctive(self, points: np.ndarray) -> np.ndarray:
        """See `refinement_torch.distinctive`."""
        out = np.empty_like(points)
        run(
            lambda start, stop: corner_rows(
                start, stop, self.gray0, points, REACH, np.float32(CORNER), np.float32(FACTOR), out
            ),
            len(out),
        )
        return out

    def align(
        self, points0: np.ndarray, points1: np.ndarray, maps: np.ndarray, search: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `refinement_torch.align`."""
        moved, quality = np.empty_like(points1), np.empty_like(points1)
        images, starts = (self.gray0, self.gray1), (points0, points1, np.ascontiguousarray(maps))
        options = window().numpy(), search, PULL, STEPS, PRIOR, NOISE, np.float32(FLAT)
        run(partial(_call, align_rows, *images, *starts, *options, moved, quality), len(moved))
        return moved, quality[:, 0], quality[:, 1]


def local_maps_on_cpu(
    points0: np.ndarray, points1: np.ndarray, weights: np.ndarray, radius: float, first: float, last: float
) -> np.ndarray:
    """See `refinement_torch.local_maps`."""
    out = np.empty((len(points0), 9))
    inputs = points0, points1, weights, *_buckets(points0, radius), radius, ROUNDS, first, last, STIFFNESS
    run(partial(_call, field_rows, *inputs, out), len(out))
    return out


def _call(kernel, *rest_and_range) -> None:
    *rest, start, stop = rest_and_range
    kernel(start, stop, *rest)


def _buckets(points: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray, int, np.ndarray]:
    """Sort points into squares of ``radius`` pixels.

    Returns:
        where each square starts in the order ``[squares + 1]``, the order ``[M]``, squares a row, and the corner of the first one ``[2]``.
    """
    corner = points.min(0)
    place = ((points - corner) // radius).astype(np.int64)
    columns, lines = place.max(0) + 1
    square = place[:, 1] * columns + place[:, 0]
    counts = np.bincount(square, minlength=columns * lines)
    return np.concatenate([[0], counts.cumsum()]), np.argsort(square, kind="stable"), int(columns), corner
