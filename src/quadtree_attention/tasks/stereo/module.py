"""Training and validation of a stereo network by Lightning."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics.aggregation import MeanMetric

from ...errors import InputError
from ...evaluation.stereo import BAD, disparity_metrics, occlusion_iou
from ...models.sttr import STTR, STTR_PRESETS, StereoOutput
from ...weights.files import ENTRY, description
from ...weights.loading import initialize
from ..optimization import check_rates, decaying, rise_and_cosine
from .loss import StereoTruth, stereo_losses

_METRICS = ("epe", "epe_visible", *(f"bad@{threshold:g}" for threshold in BAD), "d1", "iou")


class StereoTask(LightningModule):
    """STTR on pairs with known disparity and occlusion; batches as `StereoDataset` makes them.

    Args:
        preset: name in `STTR_PRESETS`.
        options: fields of `STTRConfig` to change in it, such as ``{attention: full}``.
        init_from: start from these weights (a name or a file) instead of random ones; fine matching, context adjustment and the MLPs of attention
            layers may be missing there.
        train_only: parts of the network to train, such as ``[fine, context]``; the rest stays as ``init_from`` has it. None: all of it.
        learning_rate: the highest, after ``warmup_steps`` steps of linear growth; then a cosine down to nothing if the
            trainer knows how many steps there are (``max_steps`` or ``max_epochs``).
        weight_decay, betas: of AdamW; vectors (biases, norms, level weights) do not decay.
        response_weight, raw_weight, disparity_weight, occlusion_weight, fine_weight: of the parts of the loss, see `stereo_losses`.
        recompute: compute attention layers anew in the backward pass instead of keeping what they hold, as published: less
            memory, more time.
        channels_last: memory layout of the images and convolutions.

    Raises:
        ValueError: an unknown preset or option, or weights that do not fit.
    """

    metrics: Any  # an nn.ModuleDict of a MeanMetric for each of _METRICS

    def __init__(
        self,
        preset: str = "tiny",
        options: dict[str, Any] | None = None,
        init_from: str | None = None,
        train_only: list[str] | None = None,
        learning_rate: float = 1e-3,
        warmup_steps: int = 100,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.99),
        response_weight: float = 1.0,
        raw_weight: float = 1.0,
        disparity_weight: float = 1.0,
        occlusion_weight: float = 1.0,
        fine_weight: float = 1.0,
        recompute: bool = False,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        weights = {"response_weight": response_weight, "raw_weight": raw_weight, "disparity_weight": disparity_weight}
        weights |= {"occlusion_weight": occlusion_weight, "fine_weight": fine_weight}
        check_rates(learning_rate, weight_decay, betas, **weights, warmup_steps=warmup_steps)
        if preset not in STTR_PRESETS:
            raise InputError(f"preset is {preset!r}, expected one of {', '.join(STTR_PRESETS)}")
        try:
            config = replace(STTR_PRESETS[preset], **(options or {}))
        except TypeError as error:
            raise InputError(f"options do not fit the model: {error}; see STTRConfig for what there is") from None
        self.save_hyperparameters()
        self.model = STTR(config)
        if init_from is not None:
            initialize(self.model, "stereo", init_from)
        self.model.transformer.recompute = recompute
        parts = [name for name, _ in self.model.named_children()]
        if unknown := set(train_only or ()) - set(parts):
            raise InputError(f"train_only has {', '.join(sorted(unknown))}, expected some of {', '.join(parts)}")
        self._frozen = [] if train_only is None else [name for name in parts if name not in train_only]
        if self._frozen:
            self.model.dustbin.requires_grad_(False)
        for name in self._frozen:
            self.model.get_submodule(name).requires_grad_(False)
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model.to(memory_format=self._layout)
        self.metrics = torch.nn.ModuleDict(
            {name: MeanMetric() for name in _METRICS}
        )  # they gather over devices by themselves

    def train(self, mode: bool = True) -> StereoTask:
        """As `nn.Module.train`, but parts that are not trained stay in evaluation mode."""
        super().train(mode)
        for name in self._frozen:
            self.model.get_submodule(name).eval()
        return self

    def losses(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], StereoOutput, StereoTruth]:
        """``loss`` and its parts, what the network said, and what was true."""
        images = [batch[key].contiguous(memory_format=self._layout) for key in ("left", "right")]
        output = self.model(*images)
        truth = StereoTruth(
            batch["disparity"], batch["occluded"], batch.get("occluded_right"), self.model.config.stride
        )
        parts = stereo_losses(output, truth)
        loss = sum(self.hparams[f"{name}_weight"] * value for name, value in parts.items())
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
        values = {f"val/{name}": value for name, value in parts.items()}
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
        self.log_dict({f"val/{name}": metric.compute() for name, metric in self.metrics.items()}, prog_bar=True)
        for metric in self.metrics.values():
            metric.reset()

    def test_step(self, batch: dict[str, Tensor], index: int) -> None:
        """As `validation_step`."""
        self.validation_step(batch, index)

    on_test_epoch_end = on_validation_epoch_end

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """With its configuration a checkpoint is all that quadtree stereo and quadtree convert need."""
        checkpoint[ENTRY] = description(self.model.config)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, with the learning rate of `rise_and_cosine`."""
        groups = decaying(self.parameters(), self.hparams["weight_decay"])
        optimizer = torch.optim.AdamW(groups, lr=self.hparams["learning_rate"], betas=tuple(self.hparams["betas"]))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate(self, step: int) -> float:
        """Share of the highest learning rate at a step."""
        # Step 0 is asked for before the loaders are made; counting their batches then would keep them from being restored.
        total = self.trainer.estimated_stepping_batches if step else math.inf
        return rise_and_cosine(step, self.hparams["warmup_steps"], total)
