"""Checks by sparse matches whether two views are a rectified pair: rows that do not correspond, disparities below 0, exchanged views."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SMALL = 200  # longer side of the small images that are searched everywhere
POINTS = 300  # that are matched
PATCH = 11  # side of their patches, in pixels
ALIKE, UNLIKE = 0.8, 0.92  # least correlation of a match; the next best one, elsewhere, has at most this share of it
FEWEST = 24  # matches needed for any verdict

OFF = 1.0  # largest error in rows without a warning, in pixels of the network's image
BELOW = 1.0  # pixels of the network's image by which a disparity is clearly below 0
SOME, FEW = 0.08, 8  # share and number of matches with such a disparity from which a warning is due
MOST = 0.7  # share of such matches from which the views seem to be exchanged


class Displacements(NamedTuple):
    """Points ``[N, 2]`` (x, y) of the left image, and their displacements in the right one ``[N, 2]``, to a fraction of a pixel."""

    points: np.ndarray
    displacements: np.ndarray


def check_rows(left: np.ndarray, right: np.ndarray, scale: float = 1.0) -> str | None:
    """Say in one line what is wrong with a pair; None if nothing is, or there are too few matches to tell.

    Args:
        left, right: uint8 ``[H, W, 3]``, of one size.
        scale: pixels of the files per pixel of these images, for the numbers in the line.
    """
    displacements = find_displacements(left, right).displacements
    if len(displacements) < FEWEST:
        return None
    rows = float(np.median(displacements[:, 1]))
    off = np.abs(displacements[:, 1]) > OFF
    if off.mean() > 0.5:
        amount = scale * (abs(rows) if abs(rows) > OFF else float(np.median(np.abs(displacements[:, 1]))))
        if abs(rows) > OFF and np.mean(np.abs(displacements[:, 1] - rows) < 1.5 * OFF) > 0.5:
            side = "below" if rows > 0 else "above"
            return (
                f"the right image shows things {amount:.1f} rows {side} where the left one does: disparities will be wrong; rectify the pair, or "
                f"shift the right image {'up' if rows > 0 else 'down'} by as much"
            )
        return (
            f"rows of the two images do not correspond, they are {amount:.1f} rows off at half of the points: disparities will be wrong; rectify the "
            "pair first"
        )
    ahead = displacements[:, 0] > BELOW
    if ahead.mean() > MOST:
        return (
            f"{100 * ahead.mean():.0f} % of the matches lie further right in the right image, "
            f"{scale * np.median(displacements[ahead, 0]):.0f} pixels at the median: are left and right exchanged?"
        )
    if ahead.mean() > SOME and ahead.sum() >= FEW:
        most = int(np.ceil(scale * np.percentile(displacements[:, 0], 95) - 0.25))
        return (
            f"{100 * ahead.mean():.0f} % of the matches have a disparity below 0, down to {-most} pixels, which is not looked for; cut {most} "
            f"columns from the left of the right image and from the right of the left one, and subtract {most} from the disparities"
        )
    return None


def find_displacements(left: np.ndarray, right: np.ndarray) -> Displacements:
    """Match points of the left image that look like exactly one place in the right image, anywhere in it."""
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
    """The most textured pixel (x, y) of each cell of a grid, ``[N, 2]``: where the image changes along both axes."""
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
    """Normalised patches ``[N, PATCH ** 2]`` around places ``[N, 2]`` (x, y)."""
    step = torch.arange(PATCH) - PATCH // 2
    rows, columns = places[:, 1, None, None] + step[:, None], places[:, 0, None, None] + step
    return _normalised(image[rows, columns].flatten(1))[0]


def _normalised(patches: Tensor) -> tuple[Tensor, Tensor]:
    patches = patches - patches.mean(-1, keepdim=True)
    length = patches.norm(dim=-1, keepdim=True)
    return patches / length.clamp(min=PATCH), length


def _refined(left: Tensor, right: Tensor, start: Tensor, guess: Tensor, reach: int) -> Displacements:
    """Match places ``[N, 2]`` near guesses ``[N, 2]``, to a fraction of a pixel by fitting a parabola along each axis."""
    margin = reach + PATCH // 2 + 1
    inside = torch.ones(len(start), dtype=torch.bool)
    for places in (start, guess):
        for axis, side in ((0, left.shape[1]), (1, left.shape[0])):
            inside &= (places[:, axis] >= margin) & (places[:, axis] < side - margin)
    start, guess = start[inside], guess[inside]
    steps = torch.arange(-reach, reach + 1)
    count = len(steps)
    displacements = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).view(-1, 2)  # rows of columns
    near = _patches(right, (guess[:, None] + displacements).flatten(0, 1)).unflatten(
        0, (len(start), len(displacements))
    )
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
