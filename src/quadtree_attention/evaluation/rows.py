"""Figures of single pairs over several devices."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from .protocols import Row


class Rows(Metric):
    """Rows of single pairs, gathered over devices; a numbered pair that two devices were given counts once.

    names: of the figures in a row.
    """

    rows: list[Tensor]  # one tensor of all once they are gathered

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(self, row: Row, number: float = math.nan) -> None:
        """Add a pair's row; number: of the pair, if it has one."""
        values = [number, *(float(row[name]) for name in self.names)]
        self.rows.append(torch.tensor([values], device=self.device))

    def compute(self) -> list[Row]:
        """All rows, by number."""
        rows = torch.cat(self.rows) if isinstance(self.rows, list) else self.rows
        named = [(number, dict(zip(self.names, values, strict=True))) for number, *values in rows.tolist()]
        numbered = {number: row for number, row in named if not math.isnan(number)}
        return [*(numbered[n] for n in sorted(numbered)), *(row for number, row in named if math.isnan(number))]
