"""Position encodings along a row: rotary embedding, and STTR's relative sine encoding."""

from __future__ import annotations

import torch
from torch import Tensor

from ...ops import token_pyramid
from ..sines import frequencies, sines

ROTARY_BASE = 1000.0  # ratio of the slowest to the fastest rotation: rows of a few hundred tokens
SINE_BASE = 10000.0  # as published


def level_places(tokens: int, levels: int, device: torch.device) -> list[Tensor]:
    """Positions of the tokens of each level, coarse to fine, ``[W_l]`` float32 in tokens of the finest: a parent is at the mean of its children."""
    place = torch.arange(tokens, dtype=torch.float32, device=device)
    return [level.flatten() for level in token_pyramid(place[None, :, None, None], levels)]


def rotate(x: Tensor, place: Tensor) -> Tensor:
    """Rotate half of the channels by the token's position (rotary embedding, Su et al., arXiv 2104.09864).

    The product of a rotated query and a rotated key depends only on the distance between them. The other half of the channels is left alone, so
    that similar tokens match over any distance.

    x: ``[B, W, heads, dim]``, dim a multiple of 4; place: ``[W]``.
    """
    pairs = x.shape[-1] // 4
    sine, cosine = (table[:, None] for table in sines(place, frequencies(ROTARY_BASE, pairs), x.dtype))  # [W, 1, pairs]
    first, second, rest = x.split((pairs, pairs, x.shape[-1] - 2 * pairs), -1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine, rest], -1)


def relative_sines(tokens: int, dim: int, like: Tensor) -> Tensor:
    """Sine encoding of the distances W - 1 down to -(W - 1): ``[2 W - 1, dim]``, alternating sine and cosine, in the dtype of ``like``."""
    distance = torch.arange(tokens - 1, -tokens, -1, device=like.device)
    return torch.stack(sines(distance, frequencies(SINE_BASE, dim // 2), like.dtype), -1).flatten(1)


def by_distance(scores: Tensor) -> Tensor:
    """Pick entry i - j of row i: ``[..., W, 2 W - 1]``, over the distances W - 1 down to -(W - 1), to ``[..., W, W]``."""
    width = scores.shape[-2]
    flat = scores.flatten(-2)[..., width - 1 :]
    if width == 1:
        return flat[..., None]
    return flat[..., : width * (2 * width - 2)].unflatten(-1, (width, 2 * width - 2))[..., :width]
