"""Places in a row, as attention sees them: rotary embedding, and STTR's relative sine encoding."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ...ops import token_pyramid

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
    sine, cosine = (table[:, None].to(x.dtype) for table in _turns(place, pairs))  # [W, 1, pairs]
    first, second, rest = x.split((pairs, pairs, x.shape[-1] - 2 * pairs), -1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine, rest], -1)


def _turns(place: Tensor, pairs: int) -> tuple[Tensor, Tensor]:
    speed = ROTARY_BASE ** (-torch.arange(pairs, dtype=torch.float32, device=place.device) / pairs)
    angle = place[:, None] * speed
    return angle.sin(), angle.cos()


@lru_cache(maxsize=8)
def _sine_speeds(dim: int) -> Tensor:
    with torch.inference_mode(False):
        return SINE_BASE ** (-2 * torch.arange(dim // 2, dtype=torch.float32) / dim)


def relative_sines(tokens: int, dim: int, like: Tensor) -> Tensor:
    """Sine encoding of the distances W - 1 down to -(W - 1): ``[2 W - 1, dim]``, sine and cosine in turns, in the dtype of ``like``."""
    distance = torch.arange(tokens - 1, -tokens, -1, dtype=torch.float32, device=like.device)
    angle = distance[:, None] * _sine_speeds(dim).to(like.device)
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1).to(like.dtype)


def by_distance(scores: Tensor) -> Tensor:
    """``[..., W, 2 W - 1]``, row i over the distances W - 1 down to -(W - 1), to ``[..., W, W]``: entry (i, j) is that of i - j."""
    width = scores.shape[-2]
    flat = scores.flatten(-2)[..., width - 1 :]
    if width == 1:
        return flat[..., None]
    return flat[..., : width * (2 * width - 2)].unflatten(-1, (width, 2 * width - 2))[..., :width]
