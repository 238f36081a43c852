"""Attention along the rows of an image, full or quadtree, with position encodings."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ...nn.recording import recorded_attention
from ...ops import token_pyramid
from .config import STTRConfig
from .position import by_distance, level_places, relative_sines, rotate


class RowProjections(nn.Module):
    """Queries and keys of rows of tokens, and STTR's scores between them.

    Args:
        config: see `STTRConfig`.
    """

    def __init__(self, config: STTRConfig) -> None:
        super().__init__()
        self.config = config
        self.q_proj = nn.Linear(config.dim, config.dim)
        self.k_proj = nn.Linear(config.dim, config.dim)
        for linear in (self.q_proj, self.k_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def heads(self, x: Tensor) -> Tensor:
        """``[..., dim]`` to ``[..., heads, dim / heads]``."""
        return x.unflatten(-1, (self.config.num_heads, -1))

    def scores(self, query: Tensor, key: Tensor, sign: int) -> Tensor:
        """Content and position: ``q_i k_j + q_i r_ij + s_ij k_j``, r and s the projected sines of i - j (STTR, section 3.2).

        query, key: projected, ``[B, W, heads, d]``; sign: -1 negates distances. Returns ``[B, heads, W, W]``.
        """
        query, key = query.transpose(1, 2) * query.shape[-1] ** -0.5, key.transpose(1, 2)
        scores = query @ key.transpose(-1, -2)
        if self.config.position == "relative":
            sines = relative_sines(query.shape[2], self.config.dim, query)
            sines = sines if sign > 0 else sines.flip(0)
            of_keys = self.heads(self.k_proj(sines)).permute(1, 2, 0)  # [heads, d, 2 W - 1]
            of_queries = self.heads(self.q_proj(sines)).permute(1, 2, 0).flip(-1) * query.shape[-1] ** -0.5
            scores = scores + by_distance(query @ of_keys) + by_distance(key @ of_queries).transpose(-1, -2)
        return scores


class RowAttention(RowProjections):
    """Multi-head attention of the tokens of a row to those of the same or another row of as many tokens.

    The output projection starts at zero: a new network passes its features on unchanged.
    """

    def __init__(self, config: STTRConfig) -> None:
        super().__init__(config)
        self.uses_quadtree = config.attention != "full"  # for record_attention
        self.v_proj = nn.Linear(config.dim, config.dim)
        self.proj = nn.Linear(config.dim, config.dim)
        nn.init.xavier_uniform_(self.v_proj.weight)
        for parameter in (self.v_proj.bias, self.proj.weight, self.proj.bias):
            nn.init.zeros_(parameter)
        self.level_weights = None
        if config.attention == "quadtree_b":
            self.level_weights = nn.Parameter(self.proj.weight.new_zeros(config.levels))

    def forward(self, x: Tensor, context: Tensor, sign: int = 1) -> Tensor:
        """Attend from ``x`` to ``context``, both ``[..., W, dim]``; every row by itself. Returns ``[..., W, dim]``.

        sign: -1 negates distances, so that attention from right to left has the same distances as from left to right.
        """
        query, key, value = (
            self.heads(proj(y)).flatten(0, -4)
            for proj, y in ((self.q_proj, x), (self.k_proj, context), (self.v_proj, context))
        )
        return self.proj(self._attend(query, key, value, sign).flatten(-2).view(x.shape).to(x.dtype))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, sign: int) -> Tensor:
        """``[B, W, heads, d]`` each to the same."""
        config, tokens = self.config, query.shape[1]
        if config.position == "relative":
            share = self.scores(query, key, sign).softmax(-1)
            return (share.to(value.dtype) @ value.transpose(1, 2)).transpose(1, 2)
        if config.attention == "full":
            if config.position == "rotary":
                (place,) = level_places(tokens, 1, query.device)
                query, key = rotate(query, sign * place), rotate(key, sign * place)
            query, key, value = (y.transpose(1, 2) for y in (query, key, value))
            return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
        queries, keys, values = (token_pyramid(y, config.levels) for y in (query, key, value))
        if config.position == "rotary":
            places = [sign * place for place in level_places(tokens, config.levels, query.device)]
            queries, keys = ([rotate(y, place) for y, place in zip(ys, places, strict=True)] for ys in (queries, keys))
        return recorded_attention(
            self,
            queries,
            keys,
            values,
            levels=config.levels,
            topk=config.topk,
            variant="a" if config.attention == "quadtree_a" else "b",
            level_weights=None if self.level_weights is None else self.level_weights.softmax(0),
        )
