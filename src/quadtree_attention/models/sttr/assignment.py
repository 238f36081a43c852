"""From scores to disparity: optimal transport with a dustbin, and the expectation near its peak (STTR, sections 3.3 and 3.4)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...nn.base import sum_dtype
from ..loftr.matching import log_optimal_transport

NEVER = -1e9  # score of a pair that is not allowed
SURE = 0.5  # least share near its peak with which a token is matched


class Assignment(NamedTuple):
    """Where each token of the left image is in the right one.

    disparity: ``[B, h, w]`` in tokens, the expectation over the peak and its two neighbours. An uncertain token takes the smaller disparity of its
        nearest matched neighbours in the row, because hidden surfaces lie behind.
    confidence: ``[B, h, w]`` in 0..1, the share of the token that lies there; its occlusion is 1 - confidence.
    """

    disparity: Tensor
    confidence: Tensor


def optimal_transport(scores: Tensor, dustbin: Tensor, iterations: int, *, causal: bool = True) -> Tensor:
    """Entropy-regularised optimal transport with a dustbin at either end, in log space.

    Each left and each right token has a mass of 1 to give; the dustbins take all that has no match. Sums are in float32 or better, under
    autocast too.

    Args:
        scores: ``[..., w, w]``, left by right.
        dustbin: score of having no match, a number.
        iterations: of Sinkhorn's algorithm; it ends with the left tokens, whose shares then add up to 1.
        causal: whether only pairs with x_right <= x_left are allowed.

    Returns:
        Logarithms of shares, ``[..., w + 1, w + 1]``; the last row and column are the dustbins.
    """
    if causal:
        width = scores.shape[-1]
        scores = sum_dtype(scores)
        scores = scores.masked_fill(~torch.ones(width, width, dtype=torch.bool, device=scores.device).tril(), NEVER)
    return log_optimal_transport(scores.transpose(-1, -2), dustbin, iterations).transpose(-1, -2)


def regress(shares: Tensor) -> Assignment:
    """Disparity and confidence from shares ``[B, h, w, w]``, left by right, dustbins left out."""
    width = shares.shape[-1]
    peak = shares.argmax(-1, keepdim=True)
    right = peak + torch.arange(-1, 2, device=peak.device)  # [B, h, w, 3]
    near = F.pad(shares, (1, 1)).gather(-1, right + 1)
    confidence = near.sum(-1)
    left = torch.arange(width, device=peak.device)[:, None]
    distance = (left - right).clamp(min=0).to(shares.dtype)
    disparity = (near * distance).sum(-1) / confidence.clamp(min=1e-6)
    return Assignment(fill_from_behind(disparity, confidence.detach() >= SURE), confidence)


def spread(x: Tensor, size: tuple[int, int], stride: int, edge: float) -> Tensor:
    """Upsample tokens ``[B, h, w]`` to pixels ``[B, H, W]``: bilinear between token centres, but nearest where the two differ by more than ``edge``.

    So surfaces are smooth, and a step between two of them stays a step, without depths in between.
    """
    grid = [tokens * stride for tokens in x.shape[1:]]
    smooth = F.interpolate(x[:, None], grid, mode="bilinear", align_corners=False)[:, 0]
    nearest = F.interpolate(x[:, None], grid, mode="nearest-exact")[:, 0]
    x = torch.where((smooth - nearest).abs() > edge, nearest, smooth)
    missing = [max(want - have, 0) for want, have in zip(size, grid, strict=True)]  # fewer than a token's pixels
    return F.pad(x[:, None], (0, missing[1], 0, missing[0]), mode="replicate")[:, 0, : size[0], : size[1]]


def fill_from_behind(disparity: Tensor, known: Tensor) -> Tensor:
    """Give each unknown token of ``[B, h, w]`` the smaller disparity of its nearest known neighbours in the row; 0 in rows without any.

    No gradient flows through these disparities.
    """
    width = disparity.shape[-1]
    place = torch.arange(width, device=disparity.device).expand_as(disparity)
    before = torch.where(known, place, -1).cummax(-1).values
    after = torch.where(known, width - 1 - place, -1).flip(-1).cummax(-1).values.flip(-1)
    sides = []
    for index, found in ((before, before >= 0), (width - 1 - after, after >= 0)):
        value = disparity.detach().gather(-1, index.clamp(0, width - 1))
        sides.append(torch.where(found, value, torch.inf))
    behind = torch.minimum(*sides)
    return torch.where(known, disparity, torch.where(behind.isfinite(), behind, 0))
