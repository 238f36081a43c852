"""The last step of stereo, after the network: exact disparity at full resolution, within a short range that the network gives for each pixel.

The network knows roughly where things are, but is not exact to a pixel, and treats each row alone. Semi-global matching (Hirschmueller, PAMI 2008) is
exact, but among all disparities it confuses things that look alike. So each pixel gets a short range of disparities around the network's
hypotheses. Within it, costs of census and colour are aggregated along eight directions. A left-right check removes disparities that disagree, and
the gaps are filled from the surface behind.
"""

from __future__ import annotations

from functools import cache, partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...ops import threads
from . import exact_kernels as kernels
from .assignment import fill_from_behind
from .fine import CELL
from .model import StereoOutput

REACH = 2  # pixels of the network's image beyond the hypotheses, either way
LIKELY = 0.03  # least share with which a hypothesis of fine matching counts
WIDEST = 96  # most disparities of a pixel; those next to the network's best are kept

# Costs are whole numbers of this many parts. A pixel's cost is in 0..2, of a token in 0..10; sums over eight directions fit into 16 bits.
PARTS, TOKEN_PARTS = 500, 100
BITS, COLORS = (
    12.0,
    80.0,
)  # different bits of the census, and grey levels of the three channels together, at which a cost is 0.63
STEP, JUMP, EDGE = 0.6, 4.0, 30.0
TOKEN_STEP, TOKEN_JUMP, TOKEN_MOST = 2.0, 24.0, 10.0
TOLERANCE = 1.5  # pixels by which both views may differ
SPECK = 0.0012  # share of the image below which a connected region is a mistake
SURE = 8.0  # margin, over 8 directions, above which there is no doubt

_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1), (-1, 1), (1, -1))


class Exact(NamedTuple):
    """Maps ``[H, W]`` of the left view.

    disparity: float32, in pixels of the images.
    hidden: bool, whether the disparities place a pixel outside the right image, or behind something there.
    sure: float32 in 0..1, how much better its disparity is than others; 0 where the two views disagree.
    """

    disparity: np.ndarray
    hidden: np.ndarray
    sure: np.ndarray


def exact_disparity(left: np.ndarray, right: np.ndarray, found: StereoOutput, stride: int, scale: float = 1.0) -> Exact:
    """Find disparity to a fraction of a pixel, starting from what the network found.

    Args:
        left, right: uint8 ``[H, W, 3]``.
        found: the network's output for this pair, alone in its batch.
        stride: pixels of the network's image per token.
        scale: pixels of these images per pixel of the network's image.
    """
    greys = [_grey(image) for image in (left, right)]
    tokens = agreed_tokens(found.shares[0], greys[0], stride * scale) * stride
    low, high = ranges(found, tokens, left.shape[:2], stride, scale)
    low, count, start = _layout(low, high)
    total = np.zeros(int(count.sum()), np.int16)
    cost = _costs(left, right, greys, low, count, start)
    _add_all_paths(cost, low, count, start, greys[0], (STEP, JUMP), PARTS, total)
    disparity, margin = (np.empty(low.shape, np.float32) for _ in range(2))
    of_right, known = np.empty(low.shape, np.int32), np.empty(low.shape, bool)
    kernels.winners(total, low, count, start, disparity, margin, of_right)
    kernels.check(disparity, of_right, TOLERANCE * max(scale, 1.0), known)
    kernels.drop_specks(disparity, known, int(SPECK * disparity.size), TOLERANCE * max(scale, 1.0))
    filled = fill_from_behind(torch.from_numpy(disparity)[None], torch.from_numpy(known)[None])[0].numpy()
    smooth = np.empty_like(filled)
    threads.run(lambda first, last: kernels.median(filled, smooth, first, last), len(filled))
    behind = np.empty(low.shape, bool)
    kernels.hidden(smooth, 1.0, behind)
    sure = np.where(known, (margin / (SURE * PARTS)).clip(0, 1), 0).astype(np.float32)
    return Exact(smooth, behind, sure)


def agreed_tokens(shares: Tensor, grey: np.ndarray, pixels: float) -> np.ndarray:
    """Disparity in tokens ``[h, w]`` that is consistent between rows: semi-global matching on the shares of the assignment.

    shares: logarithms ``[h, w + 1, w + 1]``, see `StereoOutput`. grey: float32 ``[H, W]``, the left image, whose tokens are so many pixels apart.
    """
    height, width = shares.shape[0], shares.shape[1] - 1
    lefts = np.repeat(np.arange(width), np.arange(1, width + 1))
    steps = np.arange(len(lefts)) - np.repeat(np.cumsum(np.arange(width)), np.arange(1, width + 1))
    open_to = shares[:, torch.from_numpy(lefts), torch.from_numpy(lefts - steps)].float().cpu().numpy()
    cost = np.rint(np.minimum(-open_to, TOKEN_MOST) * TOKEN_PARTS).astype(np.int16).ravel()
    low, count, start = _layout(np.zeros((height, width), np.int64), np.broadcast_to(np.arange(width), (height, width)))
    total = np.zeros_like(cost)
    small = F.interpolate(torch.from_numpy(grey)[None, None], (height, width), mode="area")[0, 0].numpy()
    _add_all_paths(cost, low, count, start, small, (TOKEN_STEP, TOKEN_JUMP), TOKEN_PARTS, total, edge=20.0)
    disparity, margin = (np.empty(low.shape, np.float32) for _ in range(2))
    kernels.winners(total, low, count, start, disparity, margin, np.empty(low.shape, np.int32))
    return disparity


def ranges(
    found: StereoOutput, tokens: np.ndarray, size: tuple[int, int], stride: int, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest disparity ``[H, W]`` that each pixel of an image of ``size`` may have, in whole pixels.

    tokens: disparity ``[h, w]`` in pixels of the network's image, one more hypothesis for each token and those around it.
    """
    best = found.disparity[0].float().cpu().numpy()
    around = torch.from_numpy(tokens)[None, None]
    parts = [(best, best, 1), (-_greatest(-around), _greatest(around), stride)]
    if found.fine is not None:
        disparity, likely = (x[0].float().cpu().numpy() for x in (found.fine.disparity, found.fine.weight.exp()))
        counts = likely > LIKELY
        parts.append((np.where(counts, disparity, np.inf).min(0), np.where(counts, disparity, -np.inf).max(0), CELL))
    else:
        raw = found.raw[:, None].float().cpu()
        parts.append((-_greatest(-raw), _greatest(raw), stride))
    low, high = np.full(size, np.inf, np.float32), np.full(size, -np.inf, np.float32)
    for least, greatest, cell in parts:
        np.minimum(low, _at_pixels(least, size, cell * scale), out=low)
        np.maximum(high, _at_pixels(greatest, size, cell * scale), out=high)
    reach = round(REACH * max(scale, 1.0))
    low, high = (np.floor(low * scale) - reach).clip(0), (np.ceil(high * scale) + reach).clip(0)
    middle = _at_pixels(best, size, scale) * scale
    low = np.maximum(low, np.floor(middle) - WIDEST // 2)
    return low, np.minimum(high, low + WIDEST - 1)


def _greatest(x: Tensor) -> np.ndarray:
    """Greatest of each token of ``[1, 1, h, w]`` and the eight around it, ``[h, w]``."""
    return F.max_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)[0, 0].numpy()


def _at_pixels(x: np.ndarray, size: tuple[int, int], cell: float) -> np.ndarray:
    """``[h, w]``, of cells of so many pixels, to ``[H, W]``: the nearest one."""
    rows, columns = (
        ((np.arange(want) + 0.5) / cell).astype(np.int64).clip(0, have - 1)
        for want, have in zip(size, x.shape, strict=True)
    )
    return x[rows[:, None], columns]


def _grey(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def _layout(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``low``, ``count`` and ``start`` of ranges, see `exact_kernels`."""
    low, count = low.astype(np.int32), (high - low + 1).astype(np.int32)
    ends = np.cumsum(count, dtype=np.int64).reshape(count.shape)
    return low, count, ends - count


def _costs(
    left: np.ndarray, right: np.ndarray, greys: list[np.ndarray], low: np.ndarray, count: np.ndarray, start: np.ndarray
) -> np.ndarray:
    height, width = low.shape
    signs = [np.empty((height, width), np.uint64) for _ in greys]
    for grey, out in zip(greys, signs, strict=True):
        threads.run(partial(kernels.census, np.pad(grey, kernels.WINDOW, mode="edge"), out), height)
    cost = np.empty(int(count.sum()), np.int16)
    images = [np.ascontiguousarray(image) for image in (left, right)]
    tables = _table(kernels.BITS, BITS), _table(2 * 3 * 255, 2 * COLORS)
    threads.run(
        lambda first, last: kernels.pixel_costs(
            *signs, *images, low, count, start, *tables, np.int16(PARTS), cost, first, last
        ),
        height,
    )
    return cost


@cache
def _table(most: int, unit: float) -> np.ndarray:
    """Costs of 0..most differences: they level off at one."""
    return np.rint(PARTS * (1 - np.exp(-np.arange(most + 1) / unit))).astype(np.int16)


def _add_all_paths(
    cost: np.ndarray,
    low: np.ndarray,
    count: np.ndarray,
    start: np.ndarray,
    grey: np.ndarray,
    penalties: tuple[float, float],
    parts: int,
    total: np.ndarray,
    edge: float = EDGE,
) -> None:
    """Aggregate along all eight directions, each on its own thread; sums of integers do not depend on the order."""
    step, jump = (int(penalty * parts) for penalty in penalties)
    widest = int(count.max())

    def add_directions(first: int, last: int) -> None:
        mine = np.zeros_like(total) if (first, last) != (0, len(_DIRECTIONS)) else total
        for direction in _DIRECTIONS[first:last]:
            kernels.add_paths(cost, low, count, start, grey, step, jump, edge, direction, widest, mine)
        sums.append(mine)

    sums: list[np.ndarray] = []
    threads.run(add_directions, len(_DIRECTIONS), chunks_per_thread=1)
    for mine in sums:
        if mine is not total:
            total += mine
