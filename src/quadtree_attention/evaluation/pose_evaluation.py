"""Lists of pairs with known poses, such as ScanNet-1500, measured by Lightning: quadtree validate and quadtree test.

The figures are those of quadtree evaluate pose on the same weights and pairs, by the same `Evaluation`; several devices share the pairs.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import DataLoader

from ..errors import InputError
from ..predict.matching import Matcher
from ..weights import load
from .protocols import pose_estimators, pose_row_names
from .rows import Rows
from .run import Evaluation, Padding


class PosePairs(LightningDataModule):
    """Pairs with known poses, ``pairs`` after setup; the loader gives their numbers, one at a time.

    Args:
        source: folder or list of pairs.
        layout: "scannet", "megadepth", "superglue" or "colmap"; by default told from the source.
        limit: only the first pairs.

    Raises:
        ValueError, OSError: whatever is wrong with these, when the pairs are first needed.
    """

    def __init__(self, source: str, layout: str | None = None, limit: int | None = None) -> None:
        super().__init__()
        self.options: dict[str, Any] = {"source": source, "layout": layout, "limit": limit}

    def setup(self, stage: str) -> None:
        """Read the list."""
        module = getattr(self.trainer, "lightning_module", None)
        if not isinstance(module, PoseEvaluation):  # what Lightning makes of --ckpt_path
            raise InputError(
                "pairs with poses are for PoseEvaluation; name the weights by --model.weights, without --ckpt_path"
            )
        self.evaluation = Evaluation(protocol="pose", **self.options, **module.options)
        self.pairs = self.evaluation.pairs()

    def test_dataloader(self) -> DataLoader:
        """Numbers of pairs: a pair is read when it is matched."""
        return DataLoader(range(len(self.pairs)), batch_size=None)  # type: ignore[arg-type]  # a range will do

    val_dataloader = test_dataloader


class PoseEvaluation(LightningModule):
    """A matcher on pairs with known poses; prints what is measured, and what is published beneath it.

    Args:
        weights: a name, such as "indoor", or a file, .ckpt of a training too; see `quadtree models`. The network is the file's own.
        topk, max_size, padding, estimators: see `Evaluation`.

    Raises:
        ValueError, OSError: an unknown option, or weights that cannot be loaded.
    """

    def __init__(
        self,
        weights: str,
        topk: tuple[int, ...] | None = None,
        max_size: int | None = None,
        padding: Padding = "none",
        estimators: list[str] | None = None,
    ) -> None:
        super().__init__()
        used = pose_estimators(estimators)
        self.options: dict[str, Any] = {"max_size": max_size, "padding": padding, "estimators": used}
        network: dict[str, Any] = {} if topk is None else {"topk": tuple(topk)}
        if padding != "none":
            network["respect_masks"] = padding == "masked"
        self.model = load(weights, "matcher", options=network).to(memory_format=torch.channels_last)  # half the time
        self.rows = Rows((*pose_row_names(used), "ms"))

    def validation_step(self, number: int, index: int) -> None:
        """Match a pair of the list and judge the poses."""
        evaluation, pair = self._data.evaluation, self._data.pairs[number]
        found = evaluation.predict(evaluation.match_function(Matcher(self.model, self.device)), pair)
        self.rows.update(evaluation.judge(pair, found), number)

    def on_validation_epoch_end(self) -> None:
        """Log the summary over all devices, and print it with what is published."""
        table = self._data.evaluation.table({"this": self.rows.compute()})
        self.rows.reset()
        figures = {f"val/{name}": float(value) for name, value in table.rows[0].items() if name != "model"}
        self.log_dict(figures, sync_dist=True)  # all have the same
        if self.trainer.is_global_zero and not self.trainer.sanity_checking:
            print(table.text())

    @property
    def _data(self) -> PosePairs:
        return self.trainer.datamodule  # type: ignore[attr-defined]  # the trainer has it while it runs

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end
