"""The transformer of STTR: self- and cross-attention along rows in turns, and scores of every left with every right token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import RowAttention, RowProjections
from .config import STTRConfig


class SelfLayer(nn.Module):
    """Norm, attention of each row to itself, residual."""

    def __init__(self, config: STTRConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.dim)
        self.attn = RowAttention(config)

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """``[B * h, w, dim]`` each to the same."""
        both = self.norm(torch.cat([left, right]))
        message = self.attn(both, both)
        return left + message[: len(left)], right + message[len(left) :]


class CrossLayer(nn.Module):
    """The right row attends to the left one, then the left one to the new right one (STTR, section 3.2)."""

    def __init__(self, config: STTRConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim)
        self.norm2 = nn.LayerNorm(config.dim)
        self.attn = RowAttention(config)

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """``[B * h, w, dim]`` each to the same."""
        query = self.norm1(left)
        right = right + self.attn(self.norm1(right), query, -1)
        return left + self.attn(query, self.norm2(right)), right


class LastLayer(nn.Module):
    """The last cross layer: the right row attends to the left one; the left one's scores with it are the result.

    Scores are dense. With "rotary" positions they are of content alone, so that no disparity is preferred to another.
    """

    def __init__(self, config: STTRConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim)
        self.norm2 = nn.LayerNorm(config.dim)
        self.attn = RowAttention(config)
        self.assign = RowProjections(config)
        self.assign.k_proj.load_state_dict(self.assign.q_proj.state_dict())  # what looks alike matches, from the start

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """``[B * h, w, dim]`` each to scores ``[B * h, w, w]``, left by right, summed over heads."""
        query = self.norm1(left)
        right = self.norm2(right + self.attn(self.norm1(right), query, -1))
        assign = self.assign
        query, key = assign.q_proj(query), assign.k_proj(right)
        if assign.config.position == "relative":
            return assign.scores(assign.heads(query), assign.heads(key), 1).sum(1)
        return query @ key.transpose(1, 2) * (query.shape[-1] / assign.config.num_heads) ** -0.5


class RowTransformer(nn.Module):
    """``num_layers`` pairs of a self- and a cross-attention layer, the last of them giving scores.

    recompute: whether the backward pass computes each layer anew in place of keeping what it holds, as published. tokens_at_once: where no
    gradient is asked for, so many tokens of an image go through all layers at a time, whole rows of them, for rows have nothing to do with
    each other; None: all.
    """

    recompute = False
    tokens_at_once: int | None = 2**13

    def __init__(self, config: STTRConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for number in range(1, config.num_layers + 1):
            last = number == config.num_layers
            self.layers += [SelfLayer(config), LastLayer(config) if last else CrossLayer(config)]

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Tokens ``[B, h, w, dim]`` of both images to scores ``[B, h, w, w]``, left by right."""
        size = left.shape[:2]
        left, right = left.flatten(0, 1), right.flatten(0, 1)
        if torch.is_grad_enabled() or self.tokens_at_once is None:
            return self._rows(left, right).unflatten(0, size)
        rows = max(1, self.tokens_at_once // left.shape[1])
        scores = [self._rows(*pair) for pair in zip(left.split(rows), right.split(rows), strict=True)]
        return torch.cat(scores).unflatten(0, size)

    def _rows(self, left: Tensor, right: Tensor) -> Tensor:
        """Tokens ``[rows, w, dim]`` of both images to scores ``[rows, w, w]``."""
        pair: Any = left, right
        for layer in self.layers:
            pair = checkpoint(layer, *pair, use_reentrant=False) if self.recompute and self.training else layer(*pair)
        return pair
