"""The "cpu" backend of `matching`: scores block by block in registers, their exponentials and sums in the first cache.

A block is 6 tokens of image 0 and a vector of image 1; a tile, 6 tokens and `TILE` of the other image, is all that is ever stored of the scores.
Since scores are bounded by the lengths of the features, one exponential without a shift serves the softmax over rows and the one over columns: in
float32 up to `NARROW`, in float64 up to `WIDE`. An entry is worth keeping where its share of the row's sum so far is above the threshold. Sums
only grow, so that none that is above it in the end is missed, and a row holds fewer entries than one over the threshold.

Threads share out rows in blocks of fixed size, and sums of columns are added up block by block: any number of threads gives the same numbers.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from numba.extending import overload
from torch import Tensor

from . import cpu_blocks as blocks
from .cpu_cache import compiled
from .cpu_kernels import C32, C64, FAST, bits_to_float
from .threads import run

ROWS, LANES = 6, blocks.LANES  # of a block
TILE = 512  # columns: with 128 channels half of a core's second cache
BLOCK = 240  # rows that one thread takes at a time
STRIPE = 8192  # columns whose sums are kept for each block of rows
NARROW, WIDE = 70.0, 600.0  # scores up to which exponentials and their sums are numbers

_jit = partial(compiled, fastmath=FAST)


def bound(feat0: Tensor, feat1: Tensor) -> float:
    """No product of a token of either image ``[..., N, C]`` is larger than this, nor smaller than its negative."""
    return math.sqrt(float(feat0.square().sum(-1).amax() * feat1.square().sum(-1).amax()))


def confident_pairs(feat0: Tensor, feat1: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """`matching.confident_pairs` of one pair of images without masks, ``[L, C]`` and ``[S, C]`` in float32; returns i, j and confidence."""
    rows, columns = len(feat0), len(feat1)
    sums = np.dtype(np.float32 if bound(feat0, feat1) <= NARROW else np.float64)
    left = np.zeros((-(-rows // ROWS) * ROWS, feat0.shape[1]), np.float32)
    left[:rows] = feat0.numpy()
    panels = _panels(feat1)
    row_sum, column_sum = np.zeros(rows, sums), np.zeros(columns, sums)
    found = np.zeros(rows, np.int64)
    slots = math.floor(1 / threshold) + 2  # and one for each of the two roundings
    token, power = np.empty((rows, slots), np.int32), np.empty((rows, slots), sums)
    count = -(-rows // BLOCK)
    for first in range(0, columns, STRIPE):
        part = np.zeros((count, min(STRIPE, columns - first)), sums)
        task = partial(_call, left, panels, first, sums.type(threshold), row_sum, part, found, token, power)
        run(task, count)
        column_sum[first : first + part.shape[1]] = part.sum(0, dtype=np.float64)
    row, slot = np.nonzero(np.arange(slots) < found[:, None])
    column, of_pair = token[row, slot], power[row, slot].astype(np.float64)
    confidence = of_pair / row_sum[row] * (of_pair / column_sum[column])
    kept = confidence > threshold
    parts = row[kept], column[kept].astype(np.int64), confidence[kept].astype(np.float32)
    return tuple(map(torch.from_numpy, parts))  # type: ignore[return-value]  # three of them


def _panels(feat: Tensor) -> np.ndarray:
    """``[S, C]`` as ``[panels, C, LANES]``, the last one filled up with zeros."""
    length, channels = feat.shape
    whole = length // LANES
    panels = np.zeros((-(-length // LANES), channels, LANES), np.float32)
    array = feat.numpy()
    panels[:whole] = array[: whole * LANES].reshape(whole, LANES, channels).transpose(0, 2, 1)
    if whole < len(panels):
        panels[whole, :, : length - whole * LANES] = array[whole * LANES :].T
    return panels


def _call(*rest_and_range) -> None:
    *rest, start, stop = rest_and_range
    stripe_rows(start, stop, *rest)


def exp_bounded(x):
    """exp(x) to the rounding of x's type, for results that are neither too large for it nor next to nothing."""
    return math.exp(x)


@overload(exp_bounded, inline="always")
def _exp_bounded(x):
    if x.bitwidth == 32:

        def exp32(x):
            t = x * np.float32(1.4426950408889634)
            whole = np.int32(t + np.float32(256.5)) - np.int32(256)
            r = t - np.float32(whole)
            c = C32
            p = c[0] + r * (c[1] + r * (c[2] + r * (c[3] + r * (c[4] + r * (c[5] + r * c[6])))))
            return p * bits_to_float(np.int32((whole + np.int32(127)) << np.int32(23)))

        return exp32

    def exp64(x):
        t = x * 1.4426950408889634
        whole = np.int64(t + 2048.5) - np.int64(2048)
        r = t - np.float64(whole)
        p = 0.0
        for c in C64[::-1]:
            p = c + r * p
        return p * bits_to_float(np.int64((whole + np.int64(1023)) << np.int64(52)))

    return exp64


@_jit
def stripe_rows(start, stop, left, panels, first, threshold, row_sum, part, found, token, power):
    """Blocks of rows against the columns ``first`` to ``first + part.shape[1]``.

    Adds to row_sum ``[L]`` and part ``[blocks, columns]``, and to the entries worth keeping: found ``[L]``, how many a row has, token and power
    ``[L, slots]``, their columns and exponentials, by column.
    """
    rows, dim, width = len(row_sum), left.shape[1], part.shape[1]
    score = np.empty((ROWS, TILE), np.float32)
    value = np.empty((ROWS, TILE), power.dtype)
    for block in range(start, stop):
        for tile in range(0, width, TILE):
            count = min(TILE, width - tile)
            for i in range(block * BLOCK, min((block + 1) * BLOCK, rows), ROWS):
                for at in range(0, count, LANES):
                    panel = (first + tile + at) // LANES
                    blocks.product(left, i * dim, panels, panel * dim * LANES, dim, score, at, TILE)
                there = min(ROWS, rows - i)
                for r in range(there):
                    total = value.dtype.type(0)
                    for j in range(count):
                        e = exp_bounded(value.dtype.type(score[r, j]))
                        value[r, j] = e
                        total += e
                    row_sum[i + r] += total
                if there == ROWS:
                    for j in range(count):
                        part[block, tile + j] += (
                            value[0, j] + value[1, j] + value[2, j] + value[3, j] + value[4, j] + value[5, j]
                        )
                else:
                    for r in range(there):
                        for j in range(count):
                            part[block, tile + j] += value[r, j]
                for r in range(there):
                    least = threshold * row_sum[i + r]
                    above = 0
                    for j in range(count):
                        above += value[r, j] > least
                    if above:
                        _keep(value, r, count, first + tile, least, i + r, found, token, power)


@_jit
def _keep(value, r, count, column, least, row, found, token, power):
    """Add what is above ``least`` to the entries of a row, in place of those that no longer are."""
    kept = 0
    for slot in range(found[row]):
        if power[row, slot] > least:
            token[row, kept], power[row, kept] = token[row, slot], power[row, slot]
            kept += 1
    for j in range(count):
        if value[r, j] > least:
            token[row, kept], power[row, kept] = column + j, value[r, j]
            kept += 1
    found[row] = kept
