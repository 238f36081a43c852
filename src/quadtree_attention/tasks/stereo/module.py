"""Training and validation of a stereo network by Lightning."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics.aggregation import MeanMetric

from ...errors import InputError
from ...evaluation.stereo import BAD, disparity_metrics, occlusion_iou
from ...models.sttr import STTR, STTR_PRESETS, StereoOutput
from ..base import Task, changed, of_class, preset_of
from ..optimization import Optimization
from .loss import LossConfig, StereoTruth, stereo_losses

_METRICS = ("epe", "epe_visible", *(f"bad@{threshold:g}" for threshold in BAD), "d1", "iou")


class StereoTask(Task):
    """STTR on pairs with known disparity and occlusion; batches as `StereoDataset` makes them.

    Args:
        preset: name in `STTR_PRESETS`.
        options: fields of its `STTRConfig` to change, such as ``{attention: full}``.
        init_from: start from these weights (a name or a file) instead of random ones; fine matching, context adjustment and the MLPs of attention
            layers may be missing there.
        optimization: AdamW and its schedule.
        loss: weights of its parts.
        train_only: parts of the network to train, such as ``[fine, context]``; the rest stays as ``init_from`` has it. None: all of it.
        recompute: compute attention layers anew in the backward pass instead of keeping what they hold, as published: less
            memory, more time.
        channels_last: memory layout of the images and convolutions.

    Raises:
        ValueError: an unknown preset or option, or weights that do not fit.
    """

    model: STTR
    metrics: Any  # an nn.ModuleDict of a MeanMetric for each of _METRICS

    def __init__(
        self,
        preset: str = "tiny",
        options: dict[str, Any] | None = None,
        init_from: str | None = None,
        optimization: Optimization = Optimization(warmup_steps=100, betas=(0.9, 0.99)),
        loss: LossConfig = LossConfig(),
        train_only: list[str] | None = None,
        recompute: bool = False,
        channels_last: bool = True,
    ) -> None:
        super().__init__(changed(preset_of(STTR_PRESETS, preset), options), init_from, optimization, channels_last)
        self.loss = of_class(LossConfig, loss)
        self.model.transformer.recompute = recompute
        parts = [name for name, _ in self.model.named_children()]
        if unknown := set(train_only or ()) - set(parts):
            raise InputError(f"train_only has {', '.join(sorted(unknown))}, expected some of {', '.join(parts)}")
        self._frozen = [] if train_only is None else [name for name in parts if name not in train_only]
        if self._frozen:
            self.model.dustbin.requires_grad_(False)
        for name in self._frozen:
            self.model.get_submodule(name).requires_grad_(False)
        # They gather over devices by themselves.
        self.metrics = torch.nn.ModuleDict({name: MeanMetric() for name in _METRICS})

    def train(self, mode: bool = True) -> StereoTask:
        """As `nn.Module.train`, but parts that are not trained stay in evaluation mode."""
        super().train(mode)
        for name in self._frozen:
            self.model.get_submodule(name).eval()
        return self

    def losses(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], StereoOutput, StereoTruth]:
        """``loss`` and its parts, what the network said, and what was true."""
        images = [batch[key].contiguous(memory_format=self.layout) for key in ("left", "right")]
        output = self.model(*images)
        truth = StereoTruth(
            batch["disparity"], batch["occluded"], batch.get("occluded_right"), self.model.config.stride
        )
        parts = stereo_losses(output, truth)
        loss = sum(getattr(self.loss, f"{name}_weight") * value for name, value in parts.items())
        return {"loss": loss, **parts}, output, truth

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        """Loss of a batch."""
        parts, output, truth = self.losses(batch)
        values = {f"train/{name}": value.detach() for name, value in parts.items()}
        values["train/epe"] = disparity_metrics(output.disparity.detach(), truth.disparity, truth.known)["epe"]
        self.log_dict(
            {name: value.float() for name, value in values.items()}, prog_bar=True, batch_size=len(batch["left"])
        )
        return parts["loss"]

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        """Losses and metrics of a batch; of pixels with known disparity, and for ``epe_visible`` of those that both views show."""
        parts, output, truth = self.losses(batch)
        values = {f"{self.stage}/{name}": value for name, value in parts.items()}
        self.log_dict(values, batch_size=len(batch["left"]), sync_dist=True)
        for k in range(len(output.disparity)):
            disparity, right, known, visible = output.disparity[k], truth.disparity[k], truth.known[k], truth.visible[k]
            if not visible.any():
                continue
            measured = disparity_metrics(disparity, right, known)
            measured["epe_visible"] = disparity_metrics(disparity, right, visible)["epe"]
            measured["iou"] = occlusion_iou(output.occlusion[k], truth.occluded[k], known | truth.occluded[k])
            for name, value in measured.items():
                self.metrics[name].update(value.float())

    def on_validation_epoch_end(self) -> None:
        """Log the metrics, means over pairs of all devices."""
        self.log_dict(
            {f"{self.stage}/{name}": metric.compute() for name, metric in self.metrics.items()}, prog_bar=True
        )
        for metric in self.metrics.values():
            metric.reset()
