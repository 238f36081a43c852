"""ResNet with a feature pyramid: one image in, feature maps at 1/8 and at 1/2 out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResNetFPN(nn.Module):
    """The backbone of LoFTR (Sun et al., CVPR 2021, section 3.1).

    Args:
        initial_dim: channels of the stem, at 1/2.
        block_dims: channels at 1/2, 1/4 and 1/8.
        blocks_per_stage: residual blocks in each stage.
    """

    def __init__(self, initial_dim: int, block_dims: Sequence[int], blocks_per_stage: int = 2) -> None:
        super().__init__()
        dim1, dim2, dim3 = block_dims
        self.conv1 = nn.Conv2d(1, initial_dim, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(initial_dim)
        self.layer1 = _stage(initial_dim, dim1, 1, blocks_per_stage)
        self.layer2 = _stage(dim1, dim2, 2, blocks_per_stage)
        self.layer3 = _stage(dim2, dim3, 2, blocks_per_stage)
        self.lateral3 = nn.Conv2d(dim3, dim3, 1, bias=False)
        self.lateral2 = nn.Conv2d(dim2, dim3, 1, bias=False)
        self.smooth2 = _smooth(dim3, dim2)
        self.lateral1 = nn.Conv2d(dim1, dim2, 1, bias=False)
        self.smooth1 = _smooth(dim2, dim1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, 1, H, W]``, H and W multiples of 8, to maps ``[B, dim3, H/8, W/8]`` and ``[B, dim1, H/2, W/2]``."""
        half = self.layer1(F.relu(_normed(image, self.conv1, self.bn1), inplace=True))
        quarter = self.layer2(half)
        coarse = self.lateral3(self.layer3(quarter))
        quarter = _smoothed(_upsampled(coarse, self.lateral2(quarter)), self.smooth2)
        return coarse, _smoothed(_upsampled(quarter, self.lateral1(half)), self.smooth1)


class BasicBlock(nn.Module):
    """Residual block of two 3x3 convolutions; the shortcut is projected where stride or width change."""

    def __init__(self, dim_in: int, dim: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim_in, dim, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(dim)
        self.downsample = None
        if stride != 1 or dim_in != dim:
            self.downsample = nn.Sequential(nn.Conv2d(dim_in, dim, 1, stride=stride, bias=False), nn.BatchNorm2d(dim))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, dim_in, H, W]`` to ``[B, dim, H/stride, W/stride]``."""
        y = F.relu(_normed(x, self.conv1, self.bn1), inplace=True)
        y = _normed(y, self.conv2, self.bn2)
        return F.relu(_added(y, x if self.downsample is None else _normed(x, *self.downsample)), inplace=True)


def _stage(dim_in: int, dim: int, stride: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(dim_in, dim, stride), *(BasicBlock(dim, dim) for _ in range(blocks - 1)))


def _smooth(dim_in: int, dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(dim_in, dim_in, 3, padding=1, bias=False),
        nn.BatchNorm2d(dim_in),
        nn.LeakyReLU(inplace=True),
        nn.Conv2d(dim_in, dim, 3, padding=1, bias=False),
    )


def _smoothed(x: Tensor, layers: nn.Sequential) -> Tensor:
    conv, norm, activation, last = layers
    return last(activation(_normed(x, conv, norm)))


def _normed(x: Tensor, conv: nn.Module, norm: nn.Module) -> Tensor:
    """Batch norm of a convolution: outside training a convolution with other weights, which saves a pass over the map."""
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    if norm.training or norm.running_mean is None or norm.running_var is None:
        return norm(conv(x))
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    weight = conv.weight * scale[:, None, None, None]
    return F.conv2d(x, weight, norm.bias - norm.running_mean * scale, conv.stride, conv.padding)


def _upsampled(coarse: Tensor, lateral: Tensor) -> Tensor:
    """``lateral`` plus ``coarse``, upsampled to the same size."""
    return _added(F.interpolate(coarse, size=lateral.shape[-2:], mode="bilinear", align_corners=True), lateral)


def _added(x: Tensor, y: Tensor) -> Tensor:
    """The sum, in the memory of ``x`` where no gradient needs it."""
    return x + y if torch.is_grad_enabled() and (x.requires_grad or y.requires_grad) else x.add_(y)
