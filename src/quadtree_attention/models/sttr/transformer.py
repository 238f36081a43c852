"""The transformer of STTR: alternating self- and cross-attention along rows, then scores of every left token with every right one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..loftr.transformer import ConvMlp
from .attention import RowAttention, RowProjections
from .config import STTRConfig


class SelfLayer(nn.Module):
    """Norm, attention of each row to itself, residual; then the same with a convolutional MLP, if there is one, which starts at zero."""

    def __init__(self, config: STTRConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.dim)
        self.attn = RowAttention(config)
        self.mlp: ConvMlp | None = None
        if config.mlp_ratio:
            self.mlp_norm = nn.LayerNorm(config.dim)
            self.mlp = ConvMlp(config.dim, config.mlp_ratio * config.dim)
            nn.init.zeros_(self.mlp.fc2.weight)
            nn.init.zeros_(self.mlp.fc2.bias)

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, h, w, dim]`` each to the same."""
        both = torch.cat([left, right])
        tokens = self.norm(both)
        both = both + self.attn(tokens, tokens)
        if self.mlp is not None:
            both = both + self.mlp(self.mlp_norm(both))
        left, right = both.split(len(left))
        return left, right


class CrossLayer(nn.Module):
    """The right row attends to the left one, then the left one to the new right one (STTR, section 3.2)."""

    def __init__(self, config: STTRConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim)
        self.norm2 = nn.LayerNorm(config.dim)
        self.attn = RowAttention(config)

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, h, w, dim]`` each to the same."""
        query = self.norm1(left)
        right = right + self.attn(self.norm1(right), query, -1)
        return left + self.attn(query, self.norm2(right)), right


class LastLayer(nn.Module):
    """The last cross layer: the right row attends to the left one; the left one's scores with it are the result.

    Scores are dense. With "rotary" positions they depend on content alone, so that no disparity is preferred.
    """

    def __init__(self, config: STTRConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim)
        self.norm2 = nn.LayerNorm(config.dim)
        self.attn = RowAttention(config)
        self.assign = RowProjections(config)
        self.assign.k_proj.load_state_dict(self.assign.q_proj.state_dict())  # from the start, similar tokens match

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """``[B, h, w, dim]`` each to scores ``[B, h, w, w]``, left by right, summed over heads."""
        query = self.norm1(left)
        right = self.norm2(right + self.attn(self.norm1(right), query, -1))
        assign = self.assign
        query, key = assign.q_proj(query), assign.k_proj(right)
        if assign.config.position == "relative":
            of_query, of_key = (assign.heads(y).flatten(0, 1) for y in (query, key))
            return assign.scores(of_query, of_key, 1).sum(1).unflatten(0, query.shape[:2])
        return query @ key.transpose(-1, -2) * (query.shape[-1] / assign.config.num_heads) ** -0.5


class RowTransformer(nn.Module):
    """``num_layers`` pairs of a self- and a cross-attention layer, the last of them giving scores.

    recompute: whether the backward pass recomputes each layer instead of storing its activations, as published.
    tokens_at_once: without gradients, and where rows are independent, how many tokens of an image go through all layers at a time, in whole rows;
        None: all.
    """

    recompute = False
    tokens_at_once: int | None = 2**13

    def __init__(self, config: STTRConfig) -> None:
        super().__init__()
        self.by_rows = not config.mlp_ratio
        self.layers = nn.ModuleList()
        for number in range(1, config.num_layers + 1):
            last = number == config.num_layers
            self.layers += [SelfLayer(config), LastLayer(config) if last else CrossLayer(config)]

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Tokens ``[B, h, w, dim]`` of both images to scores ``[B, h, w, w]``, left by right."""
        if torch.is_grad_enabled() or self.tokens_at_once is None or not self.by_rows:
            return self._scores(left, right)
        rows = max(1, self.tokens_at_once // left.shape[2])
        groups = zip(*(y.flatten(0, 1).split(rows) for y in (left, right)), strict=True)
        scores = [self._scores(*(y[None] for y in group))[0] for group in groups]
        return torch.cat(scores).unflatten(0, left.shape[:2])

    def _scores(self, left: Tensor, right: Tensor) -> Tensor:
        """``[B, h, w, dim]`` of both images to ``[B, h, w, w]``."""
        pair: Any = left, right
        for layer in self.layers:
            pair = checkpoint(layer, *pair, use_reentrant=False) if self.recompute and self.training else layer(*pair)
        return pair
