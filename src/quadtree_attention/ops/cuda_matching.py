"""The "cuda" backend of `matching`: Triton kernels that keep a tile of scores in registers and store what matching asks for.

One kernel gives the logarithm of each row's sum of exponentials, and called with the images exchanged that of each column; another lists the
entries whose confidence is above the threshold. Programs reserve room in the list by an atomic, and so in any order: it is sorted afterwards.
"""

from __future__ import annotations

import contextlib
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

NONE = tl.constexpr(float("-inf"))
ROWS, COLUMNS, CHANNELS = 64, 64, 32  # of a tile, and how many channels are multiplied at a time


@triton.jit
def _tile(x, y, rows, columns, nx, ny, C: tl.constexpr, K: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr):
    """Scores [rows, columns] of x [nx, C] and y [ny, C]; those of no token are -inf."""
    row, column = rows, columns
    if WIDE:
        row, column = row.to(tl.int64), column.to(tl.int64)
    score = tl.zeros((rows.shape[0], columns.shape[0]), tl.float32)
    for start in range(0, C, K):  # not unrolled, or the tokens of x would be kept in registers for all columns
        channel = start + tl.arange(0, K)
        left = tl.load(
            x + row[:, None] * C + channel[None, :], mask=(rows < nx)[:, None] & (channel < C)[None, :], other=0.0
        )
        right = tl.load(
            y + column[None, :] * C + channel[:, None], mask=(columns < ny)[None, :] & (channel < C)[:, None], other=0.0
        )
        score = tl.dot(left, right, score, input_precision=PRECISION)
    return tl.where((rows < nx)[:, None] & (columns < ny)[None, :], score, NONE)


@triton.jit(do_not_specialize=["nx", "ny"])
def log_sums(
    x, y, sums, nx, ny,
    C: tl.constexpr, K: tl.constexpr, R: tl.constexpr, S: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Logarithm of the sum of exponentials of the scores of each token of x, sums [nx]."""
    rows = tl.program_id(0) * R + tl.arange(0, R)
    high = tl.full((R,), NONE, tl.float32)
    total = tl.zeros((R,), tl.float32)
    for start in range(0, ny, S):
        score = _tile(x, y, rows, start + tl.arange(0, S), nx, ny, C, K, WIDE, PRECISION)
        higher = tl.maximum(high, tl.max(score, 1))
        shift = tl.where(higher == NONE, 0.0, higher)
        total = total * tl.exp(high - shift) + tl.sum(tl.exp(score - shift[:, None]), 1)
        high = higher
    tl.store(sums + rows, high + tl.log(tl.where(total == 0, 1.0, total)), mask=rows < nx)


@triton.jit(do_not_specialize=["nx", "ny", "room"])
def list_pairs(
    x, y, sums_x, sums_y, count, place, confidence, nx, ny, room, least,
    C: tl.constexpr, K: tl.constexpr, R: tl.constexpr, S: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The entries whose confidence is above the exponential of ``least``: count [1], place [room] = row * ny + column, confidence [room]."""
    rows = tl.program_id(0) * R + tl.arange(0, R)
    of_rows = tl.load(sums_x + rows, mask=rows < nx, other=0.0)
    for start in range(0, ny, S):
        columns = start + tl.arange(0, S)
        score = _tile(x, y, rows, columns, nx, ny, C, K, WIDE, PRECISION)
        of_columns = tl.load(sums_y + columns, mask=columns < ny, other=0.0)
        sure = (score - of_rows[:, None]) + (score - of_columns[None, :])
        above = (sure > least).to(tl.int32)
        of_each = tl.sum(above, 1)
        found = tl.sum(of_each, 0)
        if found > 0:
            first = tl.atomic_add(count, found) + tl.cumsum(of_each, 0) - of_each
            slot = first[:, None] + tl.cumsum(above, 1) - 1
            mask = (above > 0) & (slot < room)
            tl.store(place + slot, rows[:, None].to(tl.int64) * ny + columns[None, :], mask=mask)
            tl.store(confidence + slot, tl.exp(sure), mask=mask)


def confident_pairs(feat0: Tensor, feat1: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """`matching.confident_pairs` of one pair of images without masks, ``[L, C]`` and ``[S, C]`` in float32; returns i, j and confidence."""
    feat0, feat1 = feat0.contiguous(), feat1.contiguous()
    rows, columns = len(feat0), len(feat1)
    sums0, sums1 = feat0.new_empty(rows), feat0.new_empty(columns)
    _launch(log_sums, feat0, feat1, sums0)
    _launch(log_sums, feat1, feat0, sums1)
    room = rows * (math.floor(1 / threshold) + 2)  # a row has no more, but for rounding
    count = torch.zeros(1, dtype=torch.int32, device=feat0.device)
    place = torch.empty(room, dtype=torch.int64, device=feat0.device)
    confidence = feat0.new_empty(room)
    _launch(list_pairs, feat0, feat1, sums0, sums1, count, place, confidence, room=room, least=math.log(threshold))
    found = min(int(count), room)
    place, order = place[:found].sort()
    return place // columns, place % columns, confidence[order]


def _launch(kernel, x: Tensor, y: Tensor, *arrays: Tensor, **numbers: float) -> None:
    (nx, channels), ny = x.shape, len(y)
    wide = max(nx, ny) * channels >= 2**31
    on_device = torch.cuda.device(x.device) if x.device.type == "cuda" else contextlib.nullcontext()
    with on_device:
        kernel[(triton.cdiv(nx, ROWS),)](
            x, y, *arrays, nx, ny, **numbers,
            C=channels, K=CHANNELS, R=ROWS, S=COLUMNS, WIDE=wide, PRECISION="ieee", num_warps=8, num_stages=1,
        )  # fmt: skip
