"""What the loss of matching is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from ...errors import InputError, check_range

SMALLEST = 1e-30  # a confidence below it is taken for it, so that its logarithm stays finite; published: 1e-6
CoarseLoss = Literal["focal", "cross_entropy"]
CoarsePairs = Literal["dense", "sparse"]
FineLoss = Literal["l2", "cross_entropy", "both"]


@dataclass(frozen=True)
class LossConfig:
    """LoFTR's loss and its variants. The defaults are not all as published; the recipes indoor and outdoor are.

    Args:
        coarse: "focal" (published) or "cross_entropy".
        pairs: "dense": the coarse loss is on every pair of cells (the published default); "sparse": on those that match, and with optimal
            transport on the dustbins of cells that match nothing, as in LoFTR's paper. Sparse needs the focal loss.
        confidence_floor: true matches with a confidence below it have no part in the coarse loss's gradient; 1e-6 as published.
        negative_weight: of the pairs of cells that do not match in the coarse loss, or of the dustbins, against 1 of those that do.
        fine: "l2", of the mean of the heat map, weighted by its deviation (published); "cross_entropy" of the map itself; or "both", their sum.
        coarse_weight, fine_weight: of the two parts of the loss.
        fine_matches: true matches an image that refinement is trained on at most, drawn at random.
        fine_percent: train refinement on what matching finds instead, as published: on this share (0.2 indoors, 0.3 outdoors) of as many
            matches as a batch can have, drawn at random where there are more, and filled up with true ones.
        fine_truths: with ``fine_percent``, true matches a batch at least.

    Raises:
        ValueError: the first value that makes no sense.
    """

    coarse: CoarseLoss = "focal"
    pairs: CoarsePairs = "dense"
    confidence_floor: float = SMALLEST
    negative_weight: float = 1.0
    fine: FineLoss = "l2"
    coarse_weight: float = 1.0
    fine_weight: float = 1.0
    fine_matches: int = 96
    fine_percent: float | None = None
    fine_truths: int = 200

    def __post_init__(self) -> None:
        for name, kind in (("coarse", CoarseLoss), ("pairs", CoarsePairs), ("fine", FineLoss)):
            if getattr(self, name) not in get_args(kind):
                raise InputError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(get_args(kind))}")
        if self.pairs == "sparse" and self.coarse != "focal":
            raise InputError(f"pairs is 'sparse' with coarse {self.coarse!r}, expected dense, or sparse with focal")
        for name in ("negative_weight", "coarse_weight", "fine_weight", "fine_truths"):
            check_range(name, getattr(self, name), 0)
        check_range("fine_matches", self.fine_matches, 1)
        if not 0 < self.confidence_floor < 0.5:
            raise InputError(f"confidence_floor is {self.confidence_floor}, expected above 0 and below 0.5")
        if self.fine_percent is not None and not 0 < self.fine_percent <= 1:
            raise InputError(f"fine_percent is {self.fine_percent}, expected a share of matches above 0 and up to 1")
