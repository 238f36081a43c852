"""From features to matches: dual softmax or optimal transport, mutual nearest neighbours, windows around them, expected positions."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...nn.base import sum_dtype
from ...ops.matching import MASKED, Pairs, log_sum


def dual_softmax(
    feat0: Tensor, feat1: Tensor, temperature: float, mask0: Tensor | None = None, mask1: Tensor | None = None
) -> Tensor:
    """Matching confidence of every pair of tokens: softmax over rows times softmax over columns (LoFTR, section 3.3).

    Args:
        feat0, feat1: ``[B, L, C]`` and ``[B, S, C]``.
        temperature: divides the similarities.
        mask0, mask1: bool ``[B, L]`` and ``[B, S]``, True = valid. Pairs of a valid and a masked token get 0; pairs of
            two masked ones get 1 / (L * S), as published: `select_matches` ignores them.

    Returns:
        ``[B, L, S]`` in float32, or in float64 for float64 features, under autocast too.
    """
    with full_precision(feat0):
        similarity = dot_products(feat0, feat1, feat0.shape[-1] * temperature)
        if mask0 is not None:
            similarity = similarity.masked_fill_(~mask0[:, :, None], MASKED)
        if mask1 is not None:
            similarity = similarity.masked_fill_(~mask1[:, None, :], MASKED)
        columns = similarity.softmax(1)
        rows = similarity.softmax(2)
        return rows * columns if rows.requires_grad else rows.mul_(columns)


def dot_products(feat0: Tensor, feat1: Tensor, divisor: float) -> Tensor:
    """Products ``[B, L, S]`` of features ``[B, L, C]`` and ``[B, S, C]`` over a number, in float32 or better, under autocast too."""
    with full_precision(feat0):
        return (sum_dtype(feat0) * (1 / divisor)) @ sum_dtype(feat1).transpose(1, 2)


def log_optimal_transport(
    scores: Tensor, dustbin: Tensor, iterations: int, mask0: Tensor | None = None, mask1: Tensor | None = None
) -> Tensor:
    """Entropy-regularised optimal transport with a dustbin at either end, in log space (SuperGlue, Sarlin et al., CVPR 2020, section 3.2).

    Each row and each column has a mass of 1 to give; a dustbin can take all of the other side. Sums are in float32 or better, under
    autocast too.

    Args:
        scores: ``[..., L, S]``.
        dustbin: score of having no match, a number.
        iterations: of Sinkhorn's algorithm; it ends with the columns, whose shares then add up to 1.
        mask0, mask1: bool ``[..., L]`` and ``[..., S]``, True = valid. Masked tokens do not change the result for the others (in the
            published code they have a share, which with few iterations is not quite the same).

    Returns:
        Logarithms of shares ``[..., L + 1, S + 1]``; the last row and column are the dustbins.
    """
    with full_precision(scores):
        scores = sum_dtype(scores)
        length0, length1 = scores.shape[-2:]
        dustbin = dustbin.to(scores.dtype)
        scores = torch.cat([scores, dustbin.expand(*scores.shape[:-1], 1)], -1)
        scores = torch.cat([scores, dustbin.expand(*scores.shape[:-2], 1, length1 + 1)], -2)
        share0, share1 = (
            shares(scores, length0, mask0, mask1, length1),
            shares(scores, length1, mask1, mask0, length0),
        )
        of_columns = F.pad(share1[..., :-1], (0, 1)).expand_as(scores[..., 0, :])  # 0, but for masked ones
        for _ in range(iterations):
            of_rows = share0 - log_sum(scores + of_columns[..., None, :], -1)
            of_columns = share1 - log_sum(scores + of_rows[..., None], -2)
        return scores + of_rows[..., None] + of_columns[..., None, :]


def shares(scores: Tensor, length: int, mask: Tensor | None, other: Tensor | None, others: int) -> Tensor:
    """Logarithms of the mass of each of ``length`` tokens, and of their dustbin's, ``[..., length + 1]``."""
    one = scores.new_zeros(length) if mask is None else torch.where(mask, 0.0, MASKED).to(scores)
    room = scores.new_tensor(others) if other is None else other.sum(-1, keepdim=True).to(scores).clamp(min=1)
    room = room.log().expand(*one.shape[:-1], 1) if one.dim() >= room.dim() else room.log()
    return torch.cat([one.expand(*room.shape[:-1], length), room], -1)


@torch.no_grad()
def select_matches(
    confidence: Tensor,
    grid0: tuple[int, int],
    grid1: tuple[int, int],
    *,
    threshold: float,
    border: int,
    mask0: Tensor | None = None,
    mask1: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mutual nearest neighbours above a threshold and away from the borders.

    Args:
        confidence: ``[B, L, S]`` with ``L = prod(grid0)``, ``S = prod(grid1)``.
        threshold: least confidence.
        border: cells left out along each edge; with masks, along the edges of the valid extent.
        mask0, mask1: bool ``[B, *grid]``, True = valid.

    Returns:
        Image in the batch, token of image 0, token of image 1 (int64) and confidence, each ``[M]``; sorted by image,
        then by token of image 0.
    """
    batch = confidence.shape[0]
    inner0 = inside(grid0, border, mask0, batch, confidence.device)  # [B, L]
    inner1 = inside(grid1, border, mask1, batch, confidence.device)  # [B, S]
    return mutual_neighbours(confidence, confidence.amax(1), threshold, inner0, inner1)


def mutual_neighbours(
    confidence: Tensor, column_best: Tensor, threshold: float, inner0: Tensor, inner1: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `select_matches` finds in whole rows ``[B, R, S]`` of the confidences.

    Args:
        column_best: the highest of each whole column ``[B, S]``.
        inner0, inner1: bool ``[B, R]`` and ``[B, S]``, tokens that may match: see `inside`.
    """
    row_best = confidence.amax(2)
    b, i = torch.where((row_best > threshold) & inner0)
    rows = confidence[b, i]  # only those that can hold a match
    mutual = (rows == row_best[b, i, None]) & (rows == column_best[b]) & inner1[b]
    j = mutual.int().argmax(1)  # the first, where equal ones tie
    found = mutual.any(1)
    b, i, j = b[found], i[found], j[found]
    return b, i, j, confidence[b, i, j]


def select_pairs(pairs: Pairs, inner0: Tensor, inner1: Tensor) -> Pairs:
    """As `select_matches`, of pairs that hold all whose confidence is above the threshold.

    Args:
        pairs: as `ops.matching.confident_pairs` gives them.
        inner0, inner1: bool ``[B, L]`` and ``[B, S]``, tokens that may match: see `inside`.
    """
    b, i, j, confidence = pairs
    row, column = b * inner0.shape[1] + i, b * inner1.shape[1] + j
    best = []
    for place, inner in ((row, inner0), (column, inner1)):
        highest = confidence.new_zeros(inner.numel()).scatter_reduce_(0, place, confidence, "amax")
        best.append((confidence == highest[place]) & inner.flatten()[place])
    chosen = (best[0] & best[1]).nonzero()[:, 0]
    row = row[chosen]
    chosen = chosen[torch.diff(row, prepend=row.new_tensor([-1])) != 0]  # the first of a row, where equal ones tie
    return Pairs(b[chosen], i[chosen], j[chosen], confidence[chosen])


def inside(grid: tuple[int, int], border: int, mask: Tensor | None, batch: int, device: torch.device) -> Tensor:
    """bool ``[B, prod(grid)]``: valid cells at least ``border`` cells away from the edges of the valid extent."""
    if mask is None:
        mask = torch.ones(1, 1, 1, dtype=torch.bool, device=device).expand(batch, *grid)
    inside = mask
    for axis, size in enumerate(grid):
        place = torch.arange(size, device=device)
        extent = (mask.any(2 - axis) * (place + 1)).amax(1, keepdim=True)  # [B, 1], one past the last valid place
        keep = (place >= border) & (place < extent - border)  # [B, size]
        inside = inside & keep.unsqueeze(2 - axis)
    return inside.flatten(1)


class FineWindows(nn.Module):
    """Windows of the fine map around coarse cells, joined with the cells' coarse features.

    Args:
        d_coarse, d_fine: channels of the coarse and of the fine level.
        window: side of a window in pixels of the fine map, odd.
    """

    def __init__(self, d_coarse: int, d_fine: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.down_proj = nn.Linear(d_coarse, d_fine)
        self.merge = nn.Linear(2 * d_fine, d_fine)
        for layer in (self.down_proj, self.merge):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, fine: Tensor, coarse: Tensor, b: Tensor, token: Tensor) -> Tensor:
        """Windows of the chosen cells.

        Args:
            fine: ``[B, d_fine, 4h, 4w]``.
            coarse: ``[B, h, w, d_coarse]``.
            b, token: ``[M]``, image in the batch and row-major cell of the coarse map.

        Returns:
            ``[M, window * window, d_fine]``; outside the map, features are zero before the merge.
        """
        width = coarse.shape[2]
        stride = fine.shape[-1] // width
        row, column = token // width, token % width
        offset = torch.arange(self.window, device=token.device) - self.window // 2
        y, x = stride * row[:, None] + offset, stride * column[:, None] + offset  # [M, window] each
        inside = _within(y, fine.shape[-2])[:, :, None] & _within(x, fine.shape[-1])[:, None, :]  # [M, window, window]
        y, x = y.clamp(0, fine.shape[-2] - 1), x.clamp(0, fine.shape[-1] - 1)
        windows = fine.permute(0, 2, 3, 1)[b[:, None, None], y[:, :, None], x[:, None, :]]  # [M, w, w, d_fine]
        windows = torch.where(inside[..., None], windows, windows.new_zeros(())).flatten(1, 2)
        context = self.down_proj(coarse[b, row, column])[:, None].expand(-1, windows.shape[1], -1)
        return self.merge(torch.cat([windows.to(context.dtype), context], -1))


def _within(place: Tensor, size: int) -> Tensor:
    return (place >= 0) & (place < size)


def heat_map(windows0: Tensor, windows1: Tensor) -> Tensor:
    """How likely the centre of each window of image 0 lies at each position in the window of image 1 (LoFTR, section 3.4).

    Args:
        windows0, windows1: ``[M, window * window, C]``.

    Returns:
        ``[M, window * window]`` in float32 or better, rows sum to 1.
    """
    with full_precision(windows0):
        windows0, windows1 = sum_dtype(windows0), sum_dtype(windows1)
        count, channels = windows0.shape[1:]
        centre = windows0[:, count // 2]
        return ((windows1 @ centre[:, :, None]).squeeze(2) / channels**0.5).softmax(1)


def expected_position(heat: Tensor) -> Tensor:
    """The mean of each heat map ``[M, window * window]``.

    Returns:
        ``[M, 3]``: x and y in units of the window's radius (-1 to 1), and the standard deviation, summed over x and y.
    """
    with full_precision(heat):
        side = torch.linspace(-1, 1, round(heat.shape[1] ** 0.5), device=heat.device, dtype=heat.dtype)
        y, x = torch.meshgrid(side, side, indexing="ij")
        grid = torch.stack([x.flatten(), y.flatten()], 1)  # [window * window, 2]
        mean = heat @ grid  # [M, 2]
        variance = heat @ grid.square() - mean.square()
        # The clamp keeps the gradient of the root finite.
        return torch.cat([mean, variance.clamp(min=1e-10).sqrt().sum(1, keepdim=True)], 1)


def full_precision(x: Tensor) -> AbstractContextManager:
    """Context without autocast on the device of ``x``."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
