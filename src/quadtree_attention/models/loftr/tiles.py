"""Matches of two maps of features, without the matrix of all confidences: what matching.py defines, a tile at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...nn.base import sum_dtype
from ...ops.matching import LEAST, Pairs, confident_pairs, log_sum, log_sums, tiles
from .config import LoFTRConfig
from .matching import full_precision, inside, mutual_neighbours, select_pairs, shares


class _Plan(NamedTuple):
    """From scores to confidences: exp(factor * score + of its row + of its column), rows ``[B, L]`` and columns ``[B, S]``."""

    factor: float
    rows: Tensor
    columns: Tensor

    def confidence(self, rows: slice, score: Tensor) -> Tensor:
        """Of the scores ``[B, rows, S]`` of a tile."""
        return (self.factor * score + self.rows[:, rows, None] + self.columns[:, None]).exp_()


@torch.no_grad()
def coarse_matches(
    coarse0: Tensor,
    coarse1: Tensor,
    mask0: Tensor | None,
    mask1: Tensor | None,
    config: LoFTRConfig,
    dustbin: Tensor | None = None,
) -> Pairs:
    """What `select_matches` finds in the confidences of all pairs of cells.

    Args:
        coarse0, coarse1: ``[B, h, w, C]``, each with its own h and w.
        mask0, mask1: bool ``[B, h, w]``, True = valid, or None.
        config: how confidences are made and selected.
        dustbin: score of having no match, for optimal transport.
    """
    with full_precision(coarse0):
        batch, channels = coarse0.shape[0], coarse0.shape[-1]
        inner0, inner1 = (
            inside((c.shape[1], c.shape[2]), config.border, mask, batch, c.device)
            for c, mask in ((coarse0, mask0), (coarse1, mask1))
        )
        divisor = channels * (config.temperature if dustbin is None else 1)
        feat0, feat1 = sum_dtype(coarse0.flatten(1, 2)) * (1 / divisor), sum_dtype(coarse1.flatten(1, 2))
        flat0, flat1 = (None if mask is None else mask.flatten(1) for mask in (mask0, mask1))
        if dustbin is None and config.threshold >= LEAST:
            return select_pairs(confident_pairs(feat0, feat1, config.threshold, flat0, flat1), inner0, inner1)
        if dustbin is None:
            sums0, sums1 = log_sums(feat0, feat1, flat0, flat1)
            plan, lost = _Plan(2.0, -sums0, -sums1), None
        else:
            plan, bins0, bins1 = _transport(feat0, feat1, dustbin, config.sinkhorn_iterations, flat0, flat1)
            lost = None
            if config.prefilter:
                best = _best(plan, tiles(feat0, feat1, flat0, flat1))
                lost = bins0 > best[0], bins1 > best[1]
        of_columns = _best(plan, tiles(feat0, feat1, flat0, flat1), lost)[1]
        found = []
        for rows, score in tiles(feat0, feat1, flat0, flat1):
            confidence = _kept(plan.confidence(rows, score), rows, lost)
            b, i, j, sure = mutual_neighbours(confidence, of_columns, config.threshold, inner0[:, rows], inner1)
            found.append((b, i + rows.start, j, sure))
        b, i, j, sure = map(torch.cat, zip(*found, strict=True))
        order = torch.argsort(b, stable=True)  # tiles hold rows of all images
        return Pairs(b[order], i[order], j[order], sure[order])


def _best(
    plan: _Plan, parts: Iterator[tuple[slice, Tensor]], lost: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """The highest confidence of each row ``[B, L]`` and of each column ``[B, S]``."""
    of_rows, of_columns = [], torch.zeros_like(plan.columns)
    for rows, score in parts:
        confidence = _kept(plan.confidence(rows, score), rows, lost)
        of_rows.append(confidence.amax(2))
        of_columns = torch.maximum(of_columns, confidence.amax(1))
    return torch.cat(of_rows, 1), of_columns


def _kept(confidence: Tensor, rows: slice, lost: tuple[Tensor, Tensor] | None) -> Tensor:
    """Confidences of a tile, zero where the row or the column lies in a dustbin."""
    if lost is None:
        return confidence
    return confidence.masked_fill_(lost[0][:, rows, None] | lost[1][:, None], 0.0)


def _transport(
    feat0: Tensor, feat1: Tensor, dustbin: Tensor, iterations: int, mask0: Tensor | None, mask1: Tensor | None
) -> tuple[_Plan, Tensor, Tensor]:
    """`log_optimal_transport`, and the share of each row ``[B, L]`` and column ``[B, S]`` that lies in a dustbin.

    A tile has whole rows: these give their part to the sums of the columns at once, so that an iteration goes through the scores once.
    """
    dustbin = dustbin.to(feat0.dtype)
    (batch, length0), length1 = feat0.shape[:2], feat1.shape[1]
    share0 = shares(feat0, length0, mask0, mask1, length1).expand(batch, length0 + 1)
    share1 = shares(feat0, length1, mask1, mask0, length0).expand(batch, length1 + 1)
    of_columns = F.pad(share1[:, :-1], (0, 1))  # 0, but for masked ones
    for _ in range(iterations):
        of_rows = torch.empty_like(share0)
        of_rows[:, -1] = share0[:, -1] - dustbin - log_sum(of_columns, 1)
        total = dustbin + of_rows[:, -1:].expand(batch, length1)
        for rows, score in tiles(feat0, feat1, mask0, mask1):
            given = torch.logaddexp(log_sum(score + of_columns[:, None, :-1], 2), dustbin + of_columns[:, -1:])
            of_rows[:, rows] = share0[:, rows] - given
            total = torch.logaddexp(total, log_sum(score + of_rows[:, rows, None], 1))
        in_bin = dustbin + log_sum(of_rows, 1)
        of_columns = share1 - torch.cat([total, in_bin[:, None]], 1)
    bins0 = (dustbin + of_rows[:, :-1] + of_columns[:, -1:]).exp()
    bins1 = (dustbin + of_rows[:, -1:] + of_columns[:, :-1]).exp()
    return _Plan(1.0, of_rows[:, :-1], of_columns[:, :-1]), bins0, bins1
