"""What STTR is trained with (Li et al., ICCV 2021, section 3.6): relative response, disparity twice, occlusion."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import check_range
from ...models.sttr import StereoOutput
from ...models.sttr.fine import CELL, Fine

REACH = 8.0  # pixels from a hypothesis to the truth beyond which fine matching cannot learn from it
SPREAD = 0.5  # pixels, the mean error of a right hypothesis that its distribution takes for granted


@dataclass(frozen=True)
class LossConfig:
    """Weights of the parts of the loss, see `stereo_losses`."""

    response_weight: float = 1.0
    raw_weight: float = 1.0
    disparity_weight: float = 1.0
    occlusion_weight: float = 1.0
    fine_weight: float = 1.0

    def __post_init__(self) -> None:
        for name, weight in vars(self).items():
            check_range(name, weight, 0)


class StereoTruth:
    """What is known of a batch, at full size and at the tokens.

    Args:
        disparity: ``[B, H, W]`` in pixels; 0, negative or not finite where it is not known.
        occluded: bool ``[B, H, W]``, pixels of the left image that the right one does not show.
        occluded_right: the same of the right image; None if nobody knows.
        stride: pixels a token.

    known: bool ``[B, H, W]``; visible: bool, known and not occluded, its match inside the right image.
    """

    def __init__(self, disparity: Tensor, occluded: Tensor, occluded_right: Tensor | None, stride: int) -> None:
        self.known = disparity.isfinite() & (disparity > 0)
        self.disparity = torch.where(self.known, disparity, 0)
        self.occluded, self.occluded_right = occluded, occluded_right
        columns = torch.arange(disparity.shape[-1], device=disparity.device)
        self.visible = self.known & ~occluded & (columns - self.disparity >= 0)
        self.stride = stride

    def at_tokens(self, x: Tensor, grid: tuple[int, ...], stride: int | None = None) -> Tensor:
        """The pixel in the middle of each square of ``stride`` pixels (None: of a token), ``[B, H, W]`` to ``[B, h, w]``."""
        stride = stride or self.stride
        rows, columns = (
            (torch.arange(tokens, device=x.device) * stride + stride // 2).clamp(max=side - 1)
            for side, tokens in zip(x.shape[1:], grid, strict=True)
        )
        return x[:, rows[:, None], columns]


def relative_response(shares: Tensor, truth: StereoTruth) -> Tensor:
    """Negative logarithm of each token's share where its match truly is, and of hidden tokens' share in the dustbin; their mean.

    A match between two tokens is looked for in both, weighted by how near they are (equation 9). Not clamped: a share of next to nothing
    still has its gradient.

    shares: logarithms ``[B, h, w + 1, w + 1]``, as of `StereoOutput`.
    """
    grid = (shares.shape[1], shares.shape[2] - 1)
    disparity, visible, occluded = (truth.at_tokens(x, grid) for x in (truth.disparity, truth.visible, truth.occluded))
    width = grid[1]
    target = torch.arange(width, device=shares.device) - disparity / truth.stride  # [B, h, w], in tokens
    visible = visible & (target >= 0)
    target = target.clamp(0, width - 1)
    before = target.floor()
    fraction = (target - before).clamp(1e-6, 1 - 1e-6)
    before = before.long()
    near = shares[..., :-1, :-1].gather(
        -1, torch.stack([before, (before + 1).clamp(max=width - 1)], -1)
    )  # [B, h, w, 2]
    response = torch.logaddexp(near[..., 0] + (1 - fraction).log(), near[..., 1] + fraction.log())
    losses = [-response[visible], -shares[..., :-1, -1][occluded]]
    if truth.occluded_right is not None:
        losses.append(-shares[..., -1, :-1][truth.at_tokens(truth.occluded_right, grid)])
    return _mean(torch.cat(losses))


def disparity_loss(disparity: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Smooth L1 in pixels over valid ones: ``[B, H, W]``, ``[B, H, W]``, bool ``[B, H, W]``."""
    return _mean(F.smooth_l1_loss(disparity[valid].float(), truth[valid].float(), reduction="none"))


def fine_loss(fine: Fine, truth: StereoTruth) -> Tensor:
    """Negative logarithm of the likelihood of the true disparity: each hypothesis is a Laplace distribution about what it became.

    Over pixels of 1/2 with known disparity, hidden ones too, of which a hypothesis was within ``REACH``.
    """
    grid = tuple(fine.start.shape[-2:])
    target, known = (truth.at_tokens(x, grid, CELL)[:, None] for x in (truth.disparity, truth.known))
    valid = known[:, 0] & ((fine.start - target).abs().amin(1) < REACH)
    likelihood = (fine.weight - (fine.disparity - target).abs() / SPREAD).logsumexp(1) - math.log(2 * SPREAD)
    return _mean(-likelihood[valid])


def occlusion_loss(logit: Tensor, occluded: Tensor, valid: Tensor) -> Tensor:
    """Binary cross entropy over valid pixels: logits ``[B, H, W]``, bool ``[B, H, W]`` twice."""
    return _mean(F.binary_cross_entropy_with_logits(logit[valid].float(), occluded[valid].float(), reduction="none"))


def stereo_losses(output: StereoOutput, truth: StereoTruth) -> dict[str, Tensor]:
    """``response``, ``raw`` (disparity of visible tokens), ``disparity`` (of all pixels where it is known) and ``occlusion``;
    ``fine`` too where the network has fine matching."""
    grid = tuple(output.raw.shape[1:])
    raw_truth, raw_valid = (truth.at_tokens(x, grid) for x in (truth.disparity, truth.visible))
    losses = {
        "response": relative_response(output.shares, truth),
        "raw": disparity_loss(output.raw, raw_truth, raw_valid),
        "disparity": disparity_loss(output.disparity, truth.disparity, truth.known),
        "occlusion": occlusion_loss(output.logit, truth.occluded, truth.known | truth.occluded),
    }
    if output.fine is not None:
        losses["fine"] = fine_loss(output.fine, truth)
    return losses


def _mean(values: Tensor) -> Tensor:
    """Zero, with a gradient, where there are none."""
    return values.sum() / max(values.numel(), 1)
