"""LoFTR's losses (Sun et al., CVPR 2021, section 3.5)."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import InputError
from .config import SMALLEST, LossConfig

_BELOW_ONE = 1 - 1e-6  # likewise from above


def coarse_loss(
    config: LossConfig,
    assignment: Tensor,
    confidence: Tensor,
    truth: tuple[Tensor, Tensor, Tensor],
    *,
    dustbins: bool,
    mask0: Tensor | None = None,
    mask1: Tensor | None = None,
) -> Tensor:
    """The coarse loss that ``config`` asks for.

    Args:
        assignment, confidence: as of `LoFTR.assignment` and `LoFTR.without_dustbins`; dustbins: whether the former has them.
        truth, mask0, mask1: as of `coarse_focal_loss`.
    """
    weights = {"negative_weight": config.negative_weight, "floor": config.confidence_floor}
    if config.pairs == "sparse":
        return coarse_sparse_focal_loss(assignment, truth, dustbins=dustbins, mask0=mask0, mask1=mask1, **weights)
    dense = coarse_focal_loss if config.coarse == "focal" else coarse_cross_entropy
    return dense(confidence, truth, mask0=mask0, mask1=mask1, **weights)


def coarse_focal_loss(
    confidence: Tensor,
    truth: tuple[Tensor, Tensor, Tensor],
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    positive_weight: float = 1.0,
    negative_weight: float = 1.0,
    floor: float = SMALLEST,
    mask0: Tensor | None = None,
    mask1: Tensor | None = None,
) -> Tensor:
    """Focal loss on the confidence of every pair of cells, averaged over positives and over negatives by themselves.

    Both terms are weighted by alpha, as published.

    Args:
        confidence: ``[B, L, S]`` in 0..1.
        truth: (b, i, j), int64 ``[M]`` each: the positives.
        floor: positives with a confidence below it have no gradient. By 1e-6, as published, those that are hopeless are given up; a new network
            starts near it.
        mask0, mask1: bool ``[B, L]`` and ``[B, S]`` or their grids, True = valid; pairs with an invalid cell do not count, nor in the
            mean, as they do in the published code.
    """
    if gamma < 1:
        raise InputError(f"gamma is {gamma}, expected at least 1; without focus use coarse_cross_entropy")
    positive, negative, count = _split(confidence, truth, floor, mask0, mask1)
    loss_positive = -alpha * (1 - positive).pow(gamma) * positive.log()
    loss_negative = _NegativeFocal.apply(negative, gamma) * alpha
    return positive_weight * _mean(loss_positive.sum(), positive.numel()) + negative_weight * _mean(
        loss_negative, count
    )


def coarse_sparse_focal_loss(
    assignment: Tensor,
    truth: tuple[Tensor, Tensor, Tensor],
    *,
    dustbins: bool,
    alpha: float = 0.25,
    gamma: float = 2.0,
    positive_weight: float = 1.0,
    negative_weight: float = 1.0,
    floor: float = SMALLEST,
    mask0: Tensor | None = None,
    mask1: Tensor | None = None,
) -> Tensor:
    """Focal loss on the positives alone, and with dustbins on those of cells that match nothing, which should lie there.

    The other arguments are as of `coarse_focal_loss`.

    Args:
        assignment: ``[B, L, S]`` in 0..1; ``[B, L + 1, S + 1]`` with dustbins.
        dustbins: whether the last row and column are such.
    """
    if assignment.dtype != torch.float64:
        assignment = assignment.float()
    mask0, mask1 = (None if mask is None else mask.flatten(1) for mask in (mask0, mask1))
    b, i, j = truth
    keep = torch.ones_like(b, dtype=torch.bool)
    for mask, cell in ((mask0, i), (mask1, j)):
        if mask is not None:
            keep &= mask[b, cell]
    b, i, j = b[keep], i[keep], j[keep]

    def focal(p: Tensor) -> Tensor:
        return _mean((-alpha * (1 - p).pow(gamma) * p.log()).sum(), p.numel())

    loss = positive_weight * focal(assignment[b, i, j].clamp(floor, _BELOW_ONE))
    if dustbins:
        lost = []
        for taken, mask, in_bin in ((i, mask0, assignment[:, :-1, -1]), (j, mask1, assignment[:, -1, :-1])):
            free = torch.ones_like(in_bin, dtype=torch.bool) if mask is None else mask.clone()
            free[b, taken] = False
            lost.append(in_bin[free])
        loss = loss + negative_weight * focal(torch.cat(lost).clamp(floor, _BELOW_ONE))
    return loss


def coarse_cross_entropy(
    confidence: Tensor,
    truth: tuple[Tensor, Tensor, Tensor],
    *,
    positive_weight: float = 1.0,
    negative_weight: float = 1.0,
    floor: float = SMALLEST,
    mask0: Tensor | None = None,
    mask1: Tensor | None = None,
) -> Tensor:
    """Binary cross entropy in place of the focal loss; arguments as of `coarse_focal_loss`."""
    positive, negative, count = _split(confidence, truth, floor, mask0, mask1)
    loss_negative = -torch.log1p(-negative).sum()
    return positive_weight * _mean(-positive.log().sum(), positive.numel()) + negative_weight * _mean(
        loss_negative, count
    )


def fine_l2_std_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Squared distances of refined positions, each weighted by the inverse of its predicted standard deviation.

    The weights average to 1 over all rows and carry no gradient, so that the loss cannot be lowered by being unsure.
    Rows whose target lies outside the window (an entry of 1 or more) do not count.

    Args:
        predicted: ``[M, 3]``: x, y in units of the window's radius, standard deviation.
        target: ``[M, 2]``.

    Returns:
        a scalar; zero, with a gradient of zero, if no row counts.
    """
    inside = target.abs().amax(1) < 1 if len(target) else target.new_zeros(0, dtype=torch.bool)
    inverse = 1 / predicted[:, 2].detach().clamp(min=1e-10)
    weight = inverse / inverse.mean()
    error = (predicted[:, :2] - target).square().sum(1)
    return _mean((error[inside] * weight[inside]).sum(), int(inside.sum()))


def fine_cross_entropy(heat: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of heat maps over windows against the target, dealt out to the four places around it.

    Unlike a loss on the mean of the map it tells each place whether it is right: it learns faster, and a map with
    two peaks is not taken for one between them. Rows whose target lies outside the window do not count.

    Args:
        heat: ``[M, window * window]``, rows sum to 1.
        target: ``[M, 2]``, x and y in units of the window's radius.

    Returns:
        a scalar; zero, with a gradient of zero, if no row counts.
    """
    side = round(heat.shape[1] ** 0.5)
    inside = target.abs().amax(1) < 1 if len(target) else target.new_zeros(0, dtype=torch.bool)
    place = (target[inside] + 1) * (side // 2)  # cells from the window's top left one
    distance = (place[:, :, None] - torch.arange(side, device=heat.device)).abs()  # [M, 2, window]
    across, down = (1 - distance).clamp(min=0).unbind(1)
    share = (down[:, :, None] * across[:, None, :]).flatten(1)  # [M, window * window], rows sum to 1
    return _mean(-(share * heat[inside].clamp(min=SMALLEST).log()).sum(), int(inside.sum()))


def _split(
    confidence: Tensor,
    truth: tuple[Tensor, Tensor, Tensor],
    floor: float,
    mask0: Tensor | None,
    mask1: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor | int]:
    """Confidence of the positives ``[M]``; of all pairs, 0 for those that are no negatives; how many negatives."""
    b, i, j = truth
    confidence = confidence if confidence.dtype == torch.float64 else confidence.float()
    valid0, valid1 = (None if mask is None else mask.flatten(1) for mask in (mask0, mask1))
    if valid0 is not None or valid1 is not None:
        batch, length0, length1 = confidence.shape
        valid0 = valid0 if valid0 is not None else confidence.new_ones(batch, length0, dtype=torch.bool)
        valid1 = valid1 if valid1 is not None else confidence.new_ones(batch, length1, dtype=torch.bool)
        confidence = confidence * (valid0[:, :, None] & valid1[:, None, :])
        keep = valid0[b, i] & valid1[b, j]
        b, i, j = b[keep], i[keep], j[keep]
        count: Tensor | int = (valid0.sum(1) * valid1.sum(1)).sum() - len(b)
    else:
        count = confidence.numel() - len(b)
    positive = confidence[b, i, j].clamp(floor, _BELOW_ONE)
    negative = confidence.index_put((b, i, j), confidence.new_zeros(())).clamp(max=_BELOW_ONE)
    return positive, negative, count


class _NegativeFocal(torch.autograd.Function):
    """Sum of -p^gamma * log(1 - p) over a large tensor, in few passes over memory."""

    @staticmethod
    def forward(ctx, p: Tensor, gamma: float) -> Tensor:
        ctx.gamma = gamma
        ctx.save_for_backward(p)
        return torch.log1p(-p).mul_(p.pow(gamma)).sum().neg()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (p,) = ctx.saved_tensors
        gamma = ctx.gamma
        # d/dp: p^gamma / (1 - p) - gamma * p^(gamma - 1) * log(1 - p)
        result = p.pow(gamma).div_(1 - p)
        result.sub_(torch.log1p(-p).mul_(p.pow(gamma - 1)), alpha=gamma)
        return result.mul_(grad), None


def _mean(total: Tensor, count: Tensor | int) -> Tensor:
    return total / (count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1))
