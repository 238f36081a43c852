"""Lists of pairs with known poses, such as ScanNet-1500, measured by Lightning: quadtree validate and quadtree test.

The figures are those of quadtree evaluate pose on the same weights and pairs; several devices share the pairs.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics import Metric

from ..errors import InputError
from ..predict.matching import Matcher
from ..table import Table
from ..weights import load
from .matching import LAYOUTS, PADDINGS, find_layout, match_function, padded_side
from .protocols import Row, find_matches, judge_pose, pose_estimators, pose_row_names, summarise_pose, with_published


class PosePairs(LightningDataModule):
    """Pairs with known poses, ``layout`` and ``pairs`` after setup; the loader gives their numbers, one at a time.

    Args:
        source: folder or list of pairs.
        layout: "scannet", "megadepth", "superglue" or "colmap"; by default told from the source.
        limit: only the first pairs.

    Raises:
        ValueError, OSError: whatever is wrong with these, when the pairs are first needed.
    """

    def __init__(self, source: str, layout: str | None = None, limit: int | None = None) -> None:
        super().__init__()
        self.source, self.asked_layout, self.limit = source, layout, limit

    def setup(self, stage: str) -> None:
        """Read the list."""
        module = getattr(self.trainer, "lightning_module", None)
        if not isinstance(module, PoseEvaluation):  # what Lightning makes of --ckpt_path
            raise InputError(
                "pairs with poses are for PoseEvaluation; name the weights by --model.weights, without --ckpt_path"
            )
        self.layout = self.asked_layout or find_layout("pose", self.source)
        if self.layout not in LAYOUTS or LAYOUTS[self.layout].protocol != "pose":
            fitting = " or ".join(name for name, known in LAYOUTS.items() if known.protocol == "pose")
            raise InputError(f"layout is {self.layout!r}, expected {fitting}")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"limit is {self.limit}, expected 1 or more pairs")
        self.pairs = list(LAYOUTS[self.layout].read(self.source))[: self.limit]

    def test_dataloader(self) -> DataLoader:
        """Numbers of pairs: a pair is read when it is matched."""
        return DataLoader(range(len(self.pairs)), batch_size=None)  # type: ignore[arg-type]  # a range will do

    val_dataloader = test_dataloader


class PoseRows(Metric):
    """Rows of single pairs, gathered over devices; a pair that two devices were given counts once.

    names: of the figures in a row.
    """

    rows: list[Tensor]  # one tensor of all once they are gathered

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.names = names
        self.add_state("rows", default=[], dist_reduce_fx="cat")

    def update(self, number: int, row: Row) -> None:
        values = [number, *(float(row[name]) for name in self.names)]
        self.rows.append(torch.tensor([values], device=self.device))

    def compute(self) -> list[Row]:
        rows = torch.cat(self.rows) if isinstance(self.rows, list) else self.rows
        unique = {int(number): dict(zip(self.names, values, strict=True)) for number, *values in rows.tolist()}
        return [unique[number] for number in sorted(unique)]


class PoseEvaluation(LightningModule):
    """A matcher on pairs with known poses; prints what is measured, and what is published beneath it.

    Args:
        weights: a name, such as "indoor", or a file, .ckpt of a training too; see `quadtree models`. The network is the file's own.
        topk: of quadtree attention, in place of the model's own.
        max_size: images are shrunk to it, those of the layout "megadepth" enlarged too; by default 640, or what the layout is published with.
        padding: "none"; or pad images to squares of ``max_size``, "masked", or "attended", as by the published outdoor network.
        estimators: of poses, "opencv" and "poselib"; by default those whose package is there.

    Raises:
        ValueError, OSError: an unknown option, or weights that cannot be loaded.
    """

    def __init__(
        self,
        weights: str,
        topk: tuple[int, ...] | None = None,
        max_size: int | None = None,
        padding: Literal["none", "masked", "attended"] = "none",
        estimators: list[str] | None = None,
    ) -> None:
        super().__init__()
        if padding not in PADDINGS:
            raise InputError(f"padding is {padding!r}, expected {' or '.join(PADDINGS)}")
        options: dict[str, Any] = {} if topk is None else {"topk": tuple(topk)}
        if padding != "none":
            options["respect_masks"] = padding == "masked"
        self.model = load(weights, "matcher", options=options)
        self.max_size, self.padding = max_size, padding
        self.estimators = pose_estimators(estimators)
        self.rows = PoseRows((*pose_row_names(self.estimators), "ms"))

    def validation_step(self, number: int, index: int) -> None:
        """Match a pair of the list and judge the poses."""
        pair = self._data.pairs[number]
        layout = LAYOUTS[self._data.layout]
        max_size = self.max_size or layout.max_size
        pad_to = None if self.padding == "none" else padded_side(max_size, layout.multiple)
        match = match_function(Matcher(self.model, self.device), pad_to=pad_to)
        found = find_matches(match, pair, max_size, layout.multiple)
        self.rows.update(number, {**judge_pose(pair, found, self.estimators), "ms": found.ms})

    def on_validation_epoch_end(self) -> None:
        """Log the summary over all devices, and print it with what is published."""
        summary = summarise_pose(self.rows.compute())
        self.rows.reset()
        self.log_dict(
            {f"val/{name}": float(value) for name, value in summary.items()}, sync_dist=True
        )  # all have the same
        if self.trainer.is_global_zero and not self.trainer.sanity_checking:
            print(Table(with_published([{"model": "this", **summary}], self._data.layout)).text())

    @property
    def _data(self) -> PosePairs:
        return self.trainer.datamodule  # type: ignore[attr-defined]  # the trainer has it while it runs

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end
