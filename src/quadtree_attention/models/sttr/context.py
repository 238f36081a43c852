"""Context adjustment: disparity and occlusion at full resolution, corrected by what the image shows (STTR, section 3.5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from .config import STTRConfig


class ContextAdjustment(nn.Module):
    """Predicts a residual on disparity, and new occlusion, from both and the image.

    As published, except for two things. Occlusion takes part in correcting disparity. And disparity is centred and divided by four tokens, not by
    its standard deviation, so that a step between two surfaces looks the same whatever else the image shows.
    """

    def __init__(self, config: STTRConfig) -> None:
        super().__init__()
        self.unit = 4 * config.stride  # pixels
        self.limit = config.context_limit
        dim, hidden = config.context_dim, config.context_dim * config.context_expansion
        self.enter = nn.Conv2d(5, dim, 3, padding=1) if config.context_blocks else None
        self.blocks = nn.ModuleList(
            nn.Sequential(
                weight_norm(nn.Conv2d(dim + 1, hidden, 3, padding=1)),
                nn.ReLU(inplace=True),
                weight_norm(nn.Conv2d(hidden, dim, 3, padding=1)),
            )
            for _ in range(config.context_blocks)
        )
        self.leave = nn.Conv2d(dim, 1, 3, padding=1) if config.context_blocks else None
        if self.leave is not None:
            for parameter in self.leave.parameters():  # starts without a correction
                nn.init.zeros_(parameter)
        self.occlusion = nn.Sequential(
            weight_norm(nn.Conv2d(4, dim, 3, padding=1)),
            nn.ReLU(inplace=True),
            weight_norm(nn.Conv2d(dim, dim, 3, padding=1)),
            nn.ReLU(inplace=True),
            nn.Conv2d(dim, 1, 3, padding=1),
        )

    def forward(self, disparity: Tensor, occlusion: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Args: ``[B, 1, H, W]`` in pixels, ``[B, 1, H, W]`` in 0..1, ``[B, 3, H, W]``. Returns disparity in pixels and the logit of occlusion."""
        occlusion = 2 * occlusion - 1
        if self.enter is not None and self.leave is not None and (self.limit != 0 or self.training):
            disparity = self._corrected(self.enter, self.leave, disparity, occlusion, image)
        return F.relu(disparity), self.occlusion(torch.cat([occlusion, image], 1)).to(disparity.dtype)

    def _corrected(
        self, enter: nn.Conv2d, leave: nn.Conv2d, disparity: Tensor, occlusion: Tensor, image: Tensor
    ) -> Tensor:
        mean = disparity.mean((2, 3), keepdim=True)
        disparity = (disparity - mean) / self.unit
        x = enter(torch.cat([disparity, occlusion, image], 1))
        for block in self.blocks:
            x = x + block(torch.cat([disparity.to(x.dtype), x], 1))
        correction = leave(x).to(disparity.dtype)
        if self.limit is not None and not self.training:
            correction = correction.clamp(-self.limit / self.unit, self.limit / self.unit)
        return (disparity + correction) * self.unit + mean
