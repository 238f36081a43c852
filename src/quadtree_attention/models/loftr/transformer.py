"""The transformers of LoFTR: alternating self- and cross-attention between the features of two images."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...nn import FullAttention, LinearAttention, QuadtreeAttention, SpatialReductionAttention
from .config import LoFTRConfig


class FeatureTransformer(nn.Module):
    """Layers 0, 2, 4, ... attend within each image, layers 1, 3, 5, ... to the other image (LoFTR, section 3.2).

    Args:
        make_block: makes one block.
        num_layers: pairs of a self- and a cross-attention layer.
    """

    def __init__(self, make_block: Callable[[], VitBlock | LoFTRBlock], num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(make_block() for _ in range(2 * num_layers))

    def forward(
        self, feat0: Tensor, feat1: Tensor, mask0: Tensor | None = None, mask1: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """``[B, *grid0, dim]`` and ``[B, *grid1, dim]`` to the same; masks bool ``[B, *grid]``, True = valid."""
        for index, layer in enumerate(self.layers):
            if index % 2 == 0:
                feat0, feat1 = layer(feat0, None, mask0), layer(feat1, None, mask1)
            elif layer.simultaneous:
                feat0, feat1 = layer(feat0, feat1, mask0, mask1), layer(feat1, feat0, mask1, mask0)
            else:
                feat0 = layer(feat0, feat1, mask0, mask1)
                feat1 = layer(feat1, feat0, mask1, mask0)
        return feat0, feat1


class VitBlock(nn.Module):
    """Norm, attention, norm, MLP, as in the released quadtree model; a cross layer updates both images at once.

    Args:
        dim: channels.
        attention: module called as ``attention(x, context, mask=, context_mask=)``.
        mlp_ratio: hidden channels of the MLP, as a multiple of ``dim``.
    """

    simultaneous = True

    def __init__(self, dim: int, attention: nn.Module, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = ConvMlp(dim, int(dim * mlp_ratio))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None, context_mask: Tensor | None = None
    ) -> Tensor:
        """``[B, *grid, dim]`` to the same; without ``context`` attends to itself."""
        source = None if context is None else self.norm1(context)
        x = x + self.attn(self.norm1(x), source, mask=mask, context_mask=context_mask)
        return x + self.mlp(self.norm2(x), mask)


class ConvMlp(nn.Module):
    """Linear, ReLU, depthwise 3x3 convolution, GELU, linear, on a 2-D grid."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, dim)
        nn.init.normal_(self.dwconv.weight, std=math.sqrt(2 / 9))
        nn.init.zeros_(self.dwconv.bias)  # type: ignore[arg-type]  # convolutions may lack one

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``[B, H, W, dim]`` to the same; ``mask`` bool ``[B, H, W]``: invalid tokens count as zero padding."""
        x = F.relu(self.fc1(x), inplace=True)
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0)
        x = self.dwconv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(F.gelu(x))


class LoFTRBlock(nn.Module):
    """LoFTR's own block: attention, norm, MLP on input and message together, norm; a cross layer updates image 0 first.

    Args:
        dim: channels.
        attention: module called as ``attention(x, context, mask=, context_mask=)``; its output projection is what LoFTR
            calls merge.
    """

    simultaneous = False

    def __init__(self, dim: int, attention: nn.Module) -> None:
        super().__init__()
        self.attn = attention
        self.norm1 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            nn.Linear(2 * dim, 2 * dim, bias=False), nn.ReLU(inplace=True), nn.Linear(2 * dim, dim, bias=False)
        )
        self.norm2 = nn.LayerNorm(dim)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None, context_mask: Tensor | None = None
    ) -> Tensor:
        """``[B, *grid, dim]`` to the same; without ``context`` attends to itself."""
        message = self.norm1(self.attn(x, context, mask=mask, context_mask=context_mask))
        return x + self.norm2(self.mlp(torch.cat([x, message.to(x.dtype)], -1)))


def coarse_transformer(config: LoFTRConfig) -> FeatureTransformer:
    """The transformer at 1/8 that ``config`` asks for."""
    dim = config.d_model

    def make_block() -> VitBlock | LoFTRBlock:
        if config.block == "vit":
            return VitBlock(dim, _attention(config, proj_bias=True), config.mlp_ratio)
        return LoFTRBlock(dim, _attention(config, proj_bias=False))

    return FeatureTransformer(make_block, config.num_layers)


def fine_transformer(config: LoFTRConfig) -> FeatureTransformer:
    """The transformer on windows at 1/2: always LoFTR's blocks with linear attention."""

    def make_block() -> LoFTRBlock:
        attention = LinearAttention(config.d_fine, config.fine_heads, qkv_bias=False, proj_bias=False)
        return LoFTRBlock(config.d_fine, attention)

    return FeatureTransformer(make_block, config.fine_layers)


def _attention(config: LoFTRConfig, *, proj_bias: bool) -> nn.Module:
    dim, heads = config.d_model, config.num_heads
    if config.attention == "linear":
        return LinearAttention(dim, heads, qkv_bias=False, proj_bias=proj_bias)
    if config.attention == "full":
        return FullAttention(dim, heads, qkv_bias=False, proj_bias=proj_bias)
    if config.attention == "sr":
        return SpatialReductionAttention(dim, heads, pool=config.sr_pool, qkv_bias=False, proj_bias=proj_bias)
    return QuadtreeAttention(
        dim,
        heads,
        levels=config.levels,
        topk=config.topk,
        variant="a" if config.attention == "quadtree_a" else "b",
        qkv_bias=False,
        proj_bias=proj_bias,
    )
