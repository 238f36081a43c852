"""Fine matching: refines the disparity of tokens to that of pixels at 1/2 by comparing features again. An addition to STTR, see `STTRConfig`."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .assignment import spread
from .config import STTRConfig

CELL = 2  # image pixels per pixel of this stage
GROUPS = 4  # of channels, compared separately
EDGE = 1.0  # largest difference in disparity between neighbours on one surface, in pixels
HYPOTHESES = 3


class Fine(NamedTuple):
    """What fine matching finds at 1/2, for the left image.

    start: ``[B, 3, H / 2, W / 2]``, three hypotheses of the disparity, in pixels.
    disparity: the same shape, each hypothesis after its correction.
    weight: the same shape, log probability of each hypothesis; the three probabilities add up to 1.
    """

    start: Tensor
    disparity: Tensor
    weight: Tensor

    def best(self) -> Tensor:
        """``[B, H / 2, W / 2]``, the likeliest disparity."""
        return self.disparity.gather(1, self.weight.argmax(1, keepdim=True))[:, 0]


class FineMatching(nn.Module):
    """Corrects disparity by comparing features at 1/2 within a few pixels of it, and chooses the surface at each pixel.

    A token's square may show two surfaces. So each pixel has three hypotheses: the disparity of its token, interpolated on surfaces, and the
    least and the greatest of the nine tokens around it. For each, groups of channels are compared within ``fine_reach`` pixels of 1/2 to either
    side (group-wise correlation, Guo et al., CVPR 2019). Convolutions turn the correlations into scores, whose expectation corrects the
    hypothesis and whose sum says how likely it is. The result is a mixture, and its likeliest part is taken, so that no disparity
    between two surfaces is made up (Tosi et al., SMD-Nets, CVPR 2021).
    """

    def __init__(self, config: STTRConfig) -> None:
        super().__init__()
        self.stride, self.reach = config.stride, config.fine_reach
        dim, offsets = config.fine_dim, HYPOTHESES * (2 * config.fine_reach + 1)
        self.coarse = nn.Conv2d(config.dim, dim, 1)
        self.features = nn.Sequential(
            nn.Conv2d(config.stem_dims[-1] + dim, dim, 3, padding=1, bias=False),
            nn.BatchNorm2d(dim),
            nn.ReLU(inplace=True),
            nn.Conv2d(dim, dim, 3, padding=1),
        )
        self.enter = nn.Conv2d(offsets * GROUPS + dim + 3, dim, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(),
                nn.Conv2d(dim, dim, 3, padding=dilation, dilation=dilation),
                nn.ReLU(inplace=True),
                nn.Conv2d(dim, dim, 3, padding=1),
            )
            for dilation in (2, 4)
        )
        self.leave = nn.Conv2d(dim, offsets, 3, padding=1)
        for parameter in self.leave.parameters():  # starts from the similarity of the features
            nn.init.zeros_(parameter)
        self.sharpness = nn.Parameter(torch.tensor(10.0))

    def forward(self, half: Tensor, tokens: Tensor, raw: Tensor, confidence: Tensor) -> Fine:
        """Args: features at 1/2 ``[2 B, C, H / 2, W / 2]`` and at 1/4 ``[2 B, dim, H / 4, W / 4]``, of left images, then of right ones;
        disparity in pixels and confidence of tokens, ``[B, h, w]``."""
        height, width = half.shape[-2:]
        coarse = F.interpolate(self.coarse(tokens), scale_factor=2, mode="bilinear", align_corners=False)
        features = self.features(torch.cat([half, coarse[..., :height, :width]], 1))
        start = hypotheses(raw, (height, width), self.stride)
        alike = similarities(features, start / CELL, self.reach)  # [B, 3, offsets, GROUPS, H / 2, W / 2]
        sure = spread(confidence.detach(), (height, width), self.stride // CELL, edge=1.0)[:, None]
        apart = ((start[:, 1:] - start[:, :1]) / 8).clamp(-2, 2)
        x = torch.cat([alike.flatten(1, 3).to(features.dtype), features.chunk(2)[0], apart, sure], 1)
        x = self.enter(x)
        for block in self.blocks:
            x = x + block(x)
        scores = self.leave(F.relu(x)).to(alike.dtype).unflatten(1, alike.shape[1:3]) + self.sharpness * alike.mean(3)
        offset = torch.arange(-self.reach, self.reach + 1, device=scores.device, dtype=scores.dtype) * CELL
        step = (scores.softmax(2) * offset[:, None, None]).sum(2)
        return Fine(start, (start + step).clamp(min=0), scores.logsumexp(2).log_softmax(1))


def hypotheses(raw: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """Disparity of tokens ``[B, h, w]`` to ``[B, 3, H / 2, W / 2]``: own, least and greatest of the nine around it. No gradient."""
    raw = raw.detach()
    cell = stride // CELL
    around = F.pad(raw[:, None], (1, 1, 1, 1), mode="replicate")
    least, greatest = -F.max_pool2d(-around, 3, stride=1), F.max_pool2d(around, 3, stride=1)
    return torch.stack(
        [spread(x, size, cell, edge) for x, edge in ((raw, EDGE), (least[:, 0], 0.0), (greatest[:, 0], 0.0))], 1
    )


def similarities(features: Tensor, disparity: Tensor, reach: int) -> Tensor:
    """Similarity of each left pixel and the right ones around its hypotheses, in -1..1, by groups of channels; 0 outside the image.

    features: ``[2 B, C, H, W]``, of left images, then of right ones; disparity: ``[B, K, H, W]`` in pixels of them.
    Returns ``[B, K, 2 reach + 1, GROUPS, H, W]``, offsets of disparity from -reach to reach.
    """
    count, (height, width) = disparity.shape[1], features.shape[-2:]
    features = F.normalize(features.permute(0, 2, 3, 1).unflatten(-1, (GROUPS, -1)).to(disparity.dtype), dim=-1)
    left, right = features.chunk(2)
    batch = len(left)
    place = torch.arange(width, device=disparity.device) - disparity
    before = place.floor()
    fraction = (place - before)[:, :, None, None]
    row = torch.arange(batch * height, device=disparity.device).view(batch, 1, height, 1) * width
    rows = right.reshape(batch * height * width, GROUPS, -1)
    found = []
    for step in range(reach + 1, -reach - 1, -1):  # of the right place: from the least disparity to the greatest
        column = before.long() + step
        inside = (column >= 0) & (column < width)
        there = rows[(row + column.clamp(0, width - 1)).flatten()].view(batch, count, height, width, GROUPS, -1)
        found.append(((there * left[:, None]).sum(-1) * inside[..., None]).permute(0, 1, 4, 2, 3))
    at = torch.stack(found, 2)  # [B, K, 2 reach + 2, GROUPS, H, W]
    return at[:, :, 1:] * (1 - fraction) + at[:, :, :-1] * fraction
