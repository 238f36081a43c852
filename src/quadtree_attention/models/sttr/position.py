"""Places in a row, as attention sees them: rotary embedding, and STTR's relative sine encoding."""

from __future__ import annotations

import torch
from torch import Tensor

from ...ops import token_pyramid
from ..sines import frequencies, sines

ROTARY_BASE = 1000.0  # ratio of the slowest to the fastest turn: rows of a few hundred tokens
SINE_BASE = 10000.0  # as published


def level_places(tokens: int, levels: int, device: torch.device) -> list[Tensor]:
    """Places of the tokens of each level, coarse to fine, ``[W_l]`` float32 in tokens of the finest: a parent stands amid its children."""
    place = torch.arange(tokens, dtype=torch.float32, device=device)
    return [level.flatten() for level in token_pyramid(place[None, :, None, None], levels)]


def rotate(x: Tensor, place: Tensor) -> Tensor:
    """Turn half of the channels by the token's place (rotary embedding, Su et al., arXiv 2104.09864).

    The product of a turned query and a turned key depends on the distance between them and not on where they are. The other half of the
    channels stays as it is: what is alike stays alike over any distance.

    x: ``[B, W, heads, dim]``, dim a multiple of 4; place: ``[W]``.
    """
    pairs = x.shape[-1] // 4
    sine, cosine = (table[:, None] for table in sines(place, frequencies(ROTARY_BASE, pairs), x.dtype))  # [W, 1, pairs]
    first, second, rest = x.split((pairs, pairs, x.shape[-1] - 2 * pairs), -1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine, rest], -1)


def relative_sines(tokens: int, dim: int, like: Tensor) -> Tensor:
    """Sine encoding of the distances W - 1 down to -(W - 1): ``[2 W - 1, dim]``, sine and cosine in turns, in the dtype of ``like``."""
    distance = torch.arange(tokens - 1, -tokens, -1, device=like.device)
    return torch.stack(sines(distance, frequencies(SINE_BASE, dim // 2), like.dtype), -1).flatten(1)


def by_distance(scores: Tensor) -> Tensor:
    """``[..., W, 2 W - 1]``, row i over the distances W - 1 down to -(W - 1), to ``[..., W, W]``: entry (i, j) is that of i - j."""
    width = scores.shape[-2]
    flat = scores.flatten(-2)[..., width - 1 :]
    if width == 1:
        return flat[..., None]
    return flat[..., : width * (2 * width - 2)].unflatten(-1, (width, 2 * width - 2))[..., :width]
