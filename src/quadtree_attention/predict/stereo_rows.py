"""Whether two views are a rectified pair at all, by matches that may lie anywhere: rows that are off, disparities below 0, exchanged views."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SMALL = 200  # pixels of the longer side of the images that are searched as a whole
POINTS = 300  # that are looked for
PATCH = 11  # pixels of their squares
ALIKE, UNLIKE = 0.8, 0.92  # least correlation of a match; the next best one, elsewhere, has at most this share of it
FEWEST = 24  # matches that say something

OFF = 1.0  # rows, of the network's image, from which on a warning is due
BELOW = 1.0  # pixels of the network's image by which a disparity is clearly below 0
SOME, FEW, MOST = (
    0.08,
    8,
    0.7,
)  # share and number of matches with such a disparity that say something, and share that says that it is so everywhere


class Displacements(NamedTuple):
    """Places ``[N, 2]`` (x, y) of points in the left image, and how far from there they are in the right one, ``[N, 2]``, to parts of a pixel."""

    places: np.ndarray
    moves: np.ndarray


def check_rows(left: np.ndarray, right: np.ndarray, scale: float = 1.0) -> str | None:
    """What is wrong with a pair, in one line; None if nothing is, or nothing can be told.

    Args:
        left, right: uint8 ``[H, W, 3]``, of one size.
        scale: pixels of the files a pixel of these images, for the numbers in the line.
    """
    moves = find_moves(left, right).moves
    if len(moves) < FEWEST:
        return None
    rows = float(np.median(moves[:, 1]))
    off = np.abs(moves[:, 1]) > OFF
    if off.mean() > 0.5:
        amount = scale * (abs(rows) if abs(rows) > OFF else float(np.median(np.abs(moves[:, 1]))))
        if abs(rows) > OFF and np.mean(np.abs(moves[:, 1] - rows) < 1.5 * OFF) > 0.5:
            side = "below" if rows > 0 else "above"
            return (
                f"the right image shows things {amount:.1f} rows {side} where the left one does: disparities will be wrong; rectify the pair, or "
                f"shift the right image {'up' if rows > 0 else 'down'} by as much"
            )
        return (
            f"rows of the two images do not correspond, they are {amount:.1f} rows off at half of the points: disparities will be wrong; rectify the "
            "pair first"
        )
    ahead = moves[:, 0] > BELOW
    if ahead.mean() > MOST:
        return (
            f"{100 * ahead.mean():.0f} % of the matches lie further right in the right image, {scale * np.median(moves[ahead, 0]):.0f} pixels at the "
            "median: are left and right exchanged?"
        )
    if ahead.mean() > SOME and ahead.sum() >= FEW:
        most = int(np.ceil(scale * np.percentile(moves[:, 0], 95) - 0.25))
        return (
            f"{100 * ahead.mean():.0f} % of the matches have a disparity below 0, down to {-most} pixels, which is not looked for; cut {most} "
            f"columns from the left of the right image and from the right of the left one, and subtract {most} from the disparities"
        )
    return None


def find_moves(left: np.ndarray, right: np.ndarray) -> Displacements:
    """Points of the left image that look like one place of the right image, wherever that is, and like no other."""
    height, width = left.shape[:2]
    scale = max(1.0, max(height, width) / SMALL)
    whole = [_grey(image) for image in (left, right)]
    size = max(PATCH, round(height / scale)), max(PATCH, round(width / scale))
    shrunk = [F.interpolate(image[None, None], size, mode="area")[0, 0] for image in whole]
    places = _textured(shrunk[0])
    patches = _patches(shrunk[0], places)
    everywhere, _ = _normalised(F.unfold(shrunk[1][None, None], PATCH)[0].T)
    scores = patches @ everywhere.T  # [N, all places of a patch]
    across = size[1] - PATCH + 1
    best = scores.max(-1)
    there = torch.stack([best.indices % across, best.indices // across], -1) + PATCH // 2
    columns, rows = torch.arange(across), torch.arange(size[0] - PATCH + 1)
    far = ((columns[None, None] - (there[:, 0, None, None] - PATCH // 2)).abs() > 3) | (
        (rows[None, :, None] - (there[:, 1, None, None] - PATCH // 2)).abs() > 3
    )
    second = scores.view(len(places), len(rows), len(columns)).masked_fill(~far, -1).amax((1, 2))
    good = (best.values > ALIKE) & (second < UNLIKE * best.values)
    ratio = torch.tensor([width / size[1], height / size[0]])
    start = ((places[good] + 0.5) * ratio - 0.5).round().long()
    guess = ((there[good] + 0.5) * ratio - 0.5).round().long()
    return _refined(whole[0], whole[1], start, guess, int(np.ceil(scale)) + 1)


def _grey(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32))


def _textured(image: Tensor) -> Tensor:
    """Places ``[N, 2]`` (x, y) where an image changes along both axes, the most so of each cell of a grid."""
    down, across = (F.pad(image.diff(dim=axis).square(), (0, axis, 0, 1 - axis)) for axis in (0, 1))
    change = F.avg_pool2d(torch.minimum(*(F.avg_pool2d(x[None, None], 5, 1, 2) for x in (down, across))), 3, 1, 1)[0, 0]
    margin = PATCH // 2
    inside = torch.zeros_like(change)
    inside[margin : change.shape[0] - margin, margin : change.shape[1] - margin] = 1
    change = change * inside
    cell = max(4, int((change.numel() / POINTS) ** 0.5))
    most, index = F.max_pool2d(change[None, None], cell, ceil_mode=True, return_indices=True)
    index = index[most > 4.0]  # (grey levels)^2
    return torch.stack([index % change.shape[1], index // change.shape[1]], -1)


def _patches(image: Tensor, places: Tensor) -> Tensor:
    """Normalised squares ``[N, PATCH ** 2]`` around places ``[N, 2]`` (x, y)."""
    step = torch.arange(PATCH) - PATCH // 2
    rows, columns = places[:, 1, None, None] + step[:, None], places[:, 0, None, None] + step
    return _normalised(image[rows, columns].flatten(1))[0]


def _normalised(patches: Tensor) -> tuple[Tensor, Tensor]:
    patches = patches - patches.mean(-1, keepdim=True)
    length = patches.norm(dim=-1, keepdim=True)
    return patches / length.clamp(min=PATCH), length


def _refined(left: Tensor, right: Tensor, start: Tensor, guess: Tensor, reach: int) -> Displacements:
    """Matches of places ``[N, 2]`` near guesses ``[N, 2]``, to parts of a pixel by a parabola along either axis."""
    margin = reach + PATCH // 2 + 1
    inside = torch.ones(len(start), dtype=torch.bool)
    for places in (start, guess):
        for axis, side in ((0, left.shape[1]), (1, left.shape[0])):
            inside &= (places[:, axis] >= margin) & (places[:, axis] < side - margin)
    start, guess = start[inside], guess[inside]
    steps = torch.arange(-reach, reach + 1)
    count = len(steps)
    moves = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).view(-1, 2)  # rows of columns
    near = _patches(right, (guess[:, None] + moves).flatten(0, 1)).unflatten(0, (len(start), len(moves)))
    scores = (near @ _patches(left, start)[..., None])[..., 0]
    best = scores.max(-1)
    row, column = best.indices // count, best.indices % count
    good = (best.values > ALIKE) & (row > 0) & (row < count - 1) & (column > 0) & (column < count - 1)
    start, guess, scores, row, column = (x[good] for x in (start, guess, scores, row, column))
    grid, n = scores.view(-1, count, count), torch.arange(len(start))
    parts = []
    for before, after in (
        (grid[n, row, column - 1], grid[n, row, column + 1]),
        (grid[n, row - 1, column], grid[n, row + 1, column]),
    ):
        middle = grid[n, row, column]
        parts.append((0.5 * (before - after) / (before - 2 * middle + after).clamp(max=-1e-6)).clamp(-0.5, 0.5))
    found = guess + torch.stack([column, row], -1) - reach + torch.stack(parts, -1)
    return Displacements(start.numpy(), (found - start).numpy())
