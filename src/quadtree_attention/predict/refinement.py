"""Refines matches to a fraction of a pixel, without training: aligns the grey patches around them.

LoFTR places a match to one or two pixels. What is around it says more. Its neighbours tell how the surface lies: an affine map from image 0 to
image 1 (`local_maps`). A point on a plain surface moves to the most distinctive pixel of its cell (`distinctive`). Its patch is searched
for near where the neighbours expect it, and aligned by Lucas and Kanade's method with gain and bias fitted (`align`; inverse compositional:
Baker and Matthews, IJCV 2004). A prior of one pixel around the start holds a match along an edge, or wherever else the patch tells nothing. All of
this is done twice: refined matches give better maps.

Translations alone, without the maps, make matches worse.

This file says what is done in which order. `refinement_torch` defines the three steps in PyTorch, for any device; `refinement_cpu` runs them on
a CPU by the kernels of `refinement_kernels`, in some tens of microseconds a match.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .refinement_torch import TorchSteps

RADIUS = 28.0  # pixels around a match within which others are its neighbours
FIRST, LAST = 6.0, 2.0  # pixels that neighbours may be off, in the first round of robust fitting and in the last
RADIUS_AGAIN, FIRST_AGAIN, LAST_AGAIN = 20.0, 3.0, 1.0  # the same, for matches that have been aligned
SEARCH, SEARCH_AGAIN = 3, 1  # pixels around the start that are searched
ALIKE = 0.6  # patches less alike than this say nothing about the place
NEAR = 3.0  # pixels from where its neighbours expect it within which a match begins where they do


@dataclass(frozen=True, eq=False)
class Refined:
    """Refined matches, in the order given; all float64.

    points0, points1: pixels ``[M, 2]``.
    likeness: correlation of the patches ``[M]``, 0 where a patch is flat.
    deviation: standard deviation of the position in image 1, in pixels, ``[M]``.
    stray: distance from where the neighbours expect the match, in pixels, before refinement and after it, ``[M, 2]``.
    support: weight of the neighbours that agree, as a share of the most there can be, one per cell of 8 pixels; before and after, ``[M, 2]``.
    share: the same, as a share of the neighbours there are, ``[M, 2]``.
    """

    points0: np.ndarray
    points1: np.ndarray
    likeness: np.ndarray
    deviation: np.ndarray
    stray: np.ndarray
    support: np.ndarray
    share: np.ndarray


def refine(
    gray0: np.ndarray,
    gray1: np.ndarray,
    points0: np.ndarray,
    points1: np.ndarray,
    confidence: np.ndarray,
    device: torch.device | str = "cpu",
) -> Refined:
    """Refine matches of two images.

    Args:
        gray0, gray1: float32 ``[H, W]`` in 0..1, as the network saw them.
        points0, points1: pixels (x, y) ``[M, 2]``; points of image 0 must be at least 8 pixels apart.
        confidence: ``[M]``, above 0.
        device: where to compute; on a CPU, in Numba.
    """
    from .refinement_cpu import CpuSteps  # loads Numba

    steps = CpuSteps(gray0, gray1) if torch.device(device).type == "cpu" else TorchSteps(gray0, gray1, device)
    start0, start1 = (np.ascontiguousarray(points, np.float64) for points in (points0, points1))
    if not len(start0):
        return Refined(start0, start1, np.zeros(0), np.zeros(0), *(np.zeros((0, 2)) for _ in range(3)))
    weights = np.ascontiguousarray(confidence, np.float64)
    field = first = steps.local_maps(start0, start1, weights, RADIUS, FIRST, LAST)
    expected, stray = field[:, 4:6], field[:, 6]
    begin = np.where(stray[:, None] < NEAR, expected, start1)
    moved0 = steps.distinctive(start0)
    way = moved0 - start0
    begin = begin + np.stack([(way * field[:, :2]).sum(1), (way * field[:, 2:4]).sum(1)], 1)
    moved1, likeness, _ = steps.align(moved0, begin, field[:, :4], SEARCH)
    sure = likeness > ALIKE
    moved0, moved1 = np.where(sure[:, None], moved0, start0), np.where(sure[:, None], moved1, start1)
    weights = _weights(likeness, sure & (stray < NEAR))
    field = steps.local_maps(moved0, moved1, weights, RADIUS_AGAIN, FIRST_AGAIN, LAST_AGAIN)
    again1, likeness, deviation = steps.align(moved0, moved1, field[:, :4], SEARCH_AGAIN)
    sure = likeness > ALIKE
    again1 = np.where(sure[:, None], again1, moved1)
    field = steps.local_maps(moved0, again1, _weights(likeness, sure), RADIUS_AGAIN, FIRST_AGAIN, LAST_AGAIN)
    agreeing, others = (np.stack([first[:, k], field[:, k]], 1) for k in (7, 8))
    return Refined(
        moved0,
        again1,
        likeness,
        deviation,
        np.stack([stray, field[:, 6]], 1),
        agreeing / _full_support(),
        agreeing / np.maximum(others, 1e-6),
    )


def support(points0: np.ndarray, points1: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    """Confidence of the neighbours that agree with each match, as a share of the most there can be, one neighbour per cell of 8 pixels: ``[M]``.

    Args:
        points0, points1: pixels ``[M, 2]``; confidence: ``[M]``.
    """
    if not len(points0):
        return np.zeros(0)
    from .refinement_cpu import local_maps_on_cpu

    start, end, weights = (np.ascontiguousarray(x, np.float64) for x in (points0, points1, confidence))
    field = local_maps_on_cpu(start, end, weights, RADIUS, FIRST, LAST)
    return field[:, 7] / _full_support()[0]


def _full_support() -> np.ndarray:
    """Total weight of the neighbours of a match if there is one in each cell of 8 pixels, for both radii ``[2]``."""
    radius = np.array([RADIUS, RADIUS_AGAIN])
    return np.pi / 2 * (1 - np.exp(-2)) * (radius / 8) ** 2 - 1


def _weights(likeness: np.ndarray, sure: np.ndarray) -> np.ndarray:
    return np.where(sure, np.maximum(likeness, 0) ** 4, 1e-3)
