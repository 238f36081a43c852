"""Which matches refinement learns from: true ones, or what matching finds."""

from __future__ import annotations

import torch
from torch import Tensor

from ...models.loftr.model import STRIDE, Features
from .supervision import Supervision, fine_target

Drawn = tuple[
    Tensor, Tensor, Tensor, Tensor
]  # image, cell of image 0, cell of image 1 [M]; what refinement is to find [M, 2]


def true_matches(truth: Supervision, images: int, most: int, generator: torch.Generator) -> Drawn:
    """At most ``most`` true matches of each of ``images``, drawn at random."""
    b = truth.b
    order = torch.randperm(len(b), generator=generator).to(b.device)
    order = order[torch.argsort(b[order], stable=True)]  # by image, shuffled within each
    counts = torch.bincount(b, minlength=images)
    place = torch.arange(len(b), device=b.device) - (counts.cumsum(0) - counts)[b[order]]
    rows = order[place < most]
    return truth.b[rows], truth.i[rows], truth.j[rows], truth.offset[rows]


def found_matches(
    found: tuple[Tensor, Tensor, Tensor],
    truth: Supervision,
    features: Features,
    share: float,
    truths: int,
    window: int,
    generator: torch.Generator,
) -> Drawn:
    """What matching finds, drawn at random where it is too much and filled up with true matches, as published.

    Matches whose place is not known are left out.

    Args:
        found: (b, i, j) as of `LoFTR.select`.
        features: of the pairs; their padding has no share in how many matches there can be.
        share: of as many matches as a batch can have.
        truths: true matches a batch at least.
        window: side of the fine window.
    """
    cells = [c.shape[1] * c.shape[2] for c in (features.coarse0, features.coarse1)]
    most = len(features.coarse0) * max(cells)
    if features.mask0 is not None and features.mask1 is not None:
        valid = torch.stack([features.mask0.flatten(1).sum(1), features.mask1.flatten(1).sum(1)])
        most = int(valid.amin(0).sum())
    wanted = int(most * share)
    given, true = torch.stack(found), torch.stack(truth[:3])  # [3, F], [3, T]
    truths = max(min(truths, wanted), wanted - given.shape[1])
    if given.shape[1] > wanted - truths:
        given = given[:, _random(given.shape[1], wanted - truths, generator).to(given.device)]
    b, i, j = torch.cat([given, true[:, _random(true.shape[1], truths, generator).to(true.device)]], 1)
    places = truth.places[b, i]
    known = places.isfinite().all(1)
    b, i, j = b[known], i[known], j[known]
    width = features.coarse1.shape[2]
    pixel = torch.stack([j % width, j // width], 1) * STRIDE
    return b, i, j, fine_target(places[known], pixel, window)


def _random(count: int, wanted: int, generator: torch.Generator) -> Tensor:
    """``wanted`` numbers below ``count``, with repetition as published; none if there is nothing to draw from."""
    return torch.randint(count, (wanted,), generator=generator) if count else torch.zeros(0, dtype=torch.int64)
