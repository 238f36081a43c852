"""Image to tokens: a contracting path of residual blocks and an expanding one of dense blocks (STTR, section 3.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..loftr.backbone import BasicBlock
from .config import STTRConfig

REACH = 16  # images are padded to a multiple of this many pixels
_CELLS = (16, 8, 4, 2)  # sides, in pixels at 1/8, of the cells that the pooling pyramid averages over


class FeatureExtractor(nn.Module):
    """Feature map of an image at 1 or 1/4 of its size.

    As published, except for two things: batch norm uses running statistics, so that an image's features do not depend on other images, and each
    image is normalised to mean 0 and deviation 1, so that they do not depend on exposure.
    """

    up3: Up | None
    fine: nn.Sequential | None

    def __init__(self, config: STTRConfig) -> None:
        super().__init__()
        stem, (dim1, dim2), blocks = config.stem_dims, config.stage_dims, config.blocks_per_stage
        layers: list[nn.Module] = []
        for dim_in, dim in zip((3, *stem), stem, strict=False):
            layers += _conv(dim_in, dim, 3, stride=1 if layers else 2)
        self.stem = nn.Sequential(*layers)  # 1/2
        self.stage1 = _stage(stem[-1], dim1, blocks)  # 1/4
        self.stage2 = _stage(dim1, dim2, blocks)  # 1/8
        self.branches = nn.ModuleList(nn.Sequential(*_conv(dim2, config.pool_dim, 1)) for _ in _CELLS)  # 1/16
        dense = config.growth * config.dense_layers
        self.dense1 = DenseBlock(4 * config.pool_dim, config.growth, config.dense_layers)
        self.up1 = Up(dense, dense)
        self.dense2 = DenseBlock(dense + dim2, config.growth, config.dense_layers)
        self.up2 = Up(dense, dense)
        self.dense3 = DenseBlock(dense + dim1, config.growth, config.dense_layers)
        self.up3, self.fine = None, None
        if config.resolution == 1:
            self.up3 = Up(dense, config.dim, stride=4)
            self.fine = nn.Sequential(*_conv(config.dim + 3, config.dim, 3), *_conv(config.dim, config.dim, 3))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, 3, H, W]`` of any size to ``[B, dim, ceil(H / resolution), ceil(W / resolution)]``, and the stem's map at 1/2."""
        height, width = image.shape[-2:]
        image = F.pad(image, (0, -width % REACH, 0, -height % REACH), mode="replicate")
        half = self.stem(image)
        quarter = self.stage1(half)
        eighth = self.stage2(quarter)
        x = self.dense1(
            torch.cat([_averaged(eighth, cell, branch) for cell, branch in zip(_CELLS, self.branches, strict=True)], 1)
        )
        x = self.dense2(self.up1(x, eighth))
        x = self.dense3(self.up2(x, quarter))
        half = half[..., : -(-height // 2), : -(-width // 2)]
        if self.up3 is None or self.fine is None:
            return x[..., : -(-height // 4), : -(-width // 4)], half
        return self.fine(self.up3(x, image))[..., :height, :width], half


class DenseBlock(nn.Module):
    """Layers that each see the input and the outputs of all earlier layers. Returns only the new channels, ``growth * layers`` of them."""

    def __init__(self, dim_in: int, growth: int, layers: int, bottleneck: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(dim_in + n * growth),
                nn.ReLU(inplace=True),
                nn.Conv2d(dim_in + n * growth, bottleneck * growth, 1, bias=False),
                nn.BatchNorm2d(bottleneck * growth),
                nn.ReLU(inplace=True),
                nn.Conv2d(bottleneck * growth, growth, 3, padding=1, bias=False),
            )
            for n in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[B, dim_in, H, W]`` to ``[B, growth * layers, H, W]``."""
        maps = [x]
        for layer in self.layers:
            maps.append(layer(torch.cat(maps, 1)))
        return torch.cat(maps[1:], 1)


class Up(nn.Module):
    """Transposed convolution to the size of another map, concatenated with that map."""

    def __init__(self, dim_in: int, dim: int, stride: int = 2) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(dim_in, dim, 3 if stride == 2 else 5, stride=stride)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """``[B, dim_in, h, w]`` and ``[B, C, H, W]`` to ``[B, dim + C, H, W]``."""
        x = self.conv(x)
        height, width = skip.shape[-2:]
        top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
        return torch.cat([x[..., top : top + height, left : left + width], skip.to(x.dtype)], 1)


def _averaged(x: Tensor, cell: int, branch: nn.Module) -> Tensor:
    """Means over cells of a map at 1/8, passed through ``branch`` and resized to 1/16."""
    height, width = x.shape[-2:]
    pooled = F.avg_pool2d(x, (min(cell, height), min(cell, width)), ceil_mode=True)
    return F.interpolate(branch(pooled), size=(height // 2, width // 2), mode="bilinear", align_corners=False)


def _conv(dim_in: int, dim: int, size: int, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(dim_in, dim, size, stride=stride, padding=size // 2, bias=False)
    return [conv, nn.BatchNorm2d(dim), nn.ReLU(inplace=True)]


def _stage(dim_in: int, dim: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(dim_in, dim, 2), *(BasicBlock(dim, dim) for _ in range(blocks - 1)))
