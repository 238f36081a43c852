"""Training and validation of a detector by Lightning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from ..data.loading import processes
from ..data.recognition.detection import DetectionData, Target
from ..errors import InputError
from ..extras import require
from ..models.classifier import level_weights
from ..models.detection import DetectorConfig, build_detector, coco_detector_config
from ..weights.files import ENTRY, description
from ..weights.loading import initialize
from .optimization import check_rates, timm_cosine


class DetectionTask(LightningModule):
    """A detector on images with boxes, and masks; batches (list of images, list of targets) as `DetectionData` makes them.

    Args:
        detector: the network, see `DetectorConfig`; or the name of one for COCO, such as "retinanet_quadtree_b2", see `coco_detector_config`.
        init_backbone: start the backbone from these weights of a classifier (a name or a file, see `quadtree models`).
        learning_rate: the highest.
        schedule: "step": a tenth after each of ``milestones``; "cosine": down to a hundredth at the end.
        milestones: epochs.
        warmup_steps: in these the rate rises linearly from a thousandth.
        weight_decay, betas: of AdamW.
        decay_norms: whether vectors (biases, norms) and level weights decay too, as in the published 1x schedule.
        seed: of drop path and of the samples that Mask R-CNN learns from.

    Raises:
        ValueError: options that do not fit, or weights that do not.
    """

    scores: Any  # an nn.ModuleDict of torchmetrics' MeanAveragePrecision by kind

    def __init__(
        self,
        detector: DetectorConfig | str,
        init_backbone: str | None = None,
        learning_rate: float = 1e-4,
        schedule: str = "step",
        milestones: Sequence[int] = (8, 11),
        warmup_steps: int = 500,
        weight_decay: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        decay_norms: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if schedule not in ("step", "cosine"):
            raise InputError(f"schedule is {schedule!r}, expected step or cosine")
        check_rates(learning_rate, weight_decay, betas, warmup_steps=warmup_steps, seed=seed)
        self.save_hyperparameters(ignore=["detector"])
        self.config = coco_detector_config(detector) if isinstance(detector, str) else detector
        self.model = build_detector(self.config)
        if init_backbone is not None:
            initialize(self.model, "detector", init_backbone)
        self.kinds = ("bbox", "segm") if self.config.detector == "mask_rcnn" else ("bbox",)
        metric = require("torchmetrics.detection", "train").MeanAveragePrecision
        self.scores = nn.ModuleDict(  # for boxes, and for masks
            {kind: metric(iou_type=kind, class_metrics=True, backend="pycocotools") for kind in self.kinds}
        )

    def setup(self, stage: str) -> None:
        """Number the classes of the data as the network does; a class that it does not have is a ValueError when the data is read."""
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, DetectionData):
            data.use_labels(self.config.labels)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """What is found in each image; see `models.detection.model`."""
        return self.model(images)

    def training_step(self, batch: tuple[list[Tensor], list[Target]], index: int) -> Tensor:
        """Sum of the losses. All draws depend on seed, epoch, batch and device alone, so that a resumed training repeats them."""
        images, targets = batch
        self._check(targets)
        torch.manual_seed(hash((self.hparams["seed"], self.current_epoch, index, processes()[1])))
        losses = self.model(images, targets)
        total = torch.stack(list(losses.values())).sum()
        if not total.isfinite():
            raise InputError(f"the loss is {total.item()} at step {self.global_step}; lower --model.learning_rate")
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=len(images))
        for name, value in losses.items():
            self.log(f"train/{name}", value.detach(), batch_size=len(images))
        return total

    def validation_step(self, batch: tuple[list[Tensor], list[Target]], index: int) -> None:
        """Compare what is found with what is there."""
        images, targets = batch
        self._check(targets)
        found = self(images)
        for metric in self.scores.values():
            metric.update(found, targets)

    def on_validation_epoch_end(self) -> None:
        """Log COCO's average precision over all devices: of IoU .5 to .95, .5, .75, of small, medium and large objects, and of each class."""
        stage = "test" if self.trainer.testing else "val"
        for kind, metric in self.scores.items():
            values = metric.compute()
            prefix = f"{stage}/" if kind == "bbox" else f"{stage}/mask_"
            names = {"map": "AP", "map_50": "AP50", "map_75": "AP75", "map_small": "APs", "map_medium": "APm"}
            for key, name in {**names, "map_large": "APl"}.items():
                self.log(prefix + name, values[key].float().clamp(min=0), prog_bar=name == "AP")
            per_class = values["map_per_class"].reshape(-1).tolist()
            for number, value in zip(values["classes"].reshape(-1).tolist(), per_class, strict=True):
                self.log(f"{prefix}AP/{self.config.labels[number]}", max(value, 0.0))
            metric.reset()

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """With its configuration a checkpoint is all that quadtree detect and quadtree convert need."""
        checkpoint[ENTRY] = description(self.config)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, with the learning rate of ``schedule``."""
        h = self.hparams
        learnt = [p for p in self.model.parameters() if p.requires_grad]
        levels = {id(p) for p in level_weights(self.model)}
        plain = [p for p in learnt if not h["decay_norms"] and (p.dim() <= 1 or id(p) in levels)]
        apart = {id(p) for p in plain}
        groups = [
            {"params": [p for p in learnt if id(p) not in apart], "weight_decay": h["weight_decay"]},
            {"params": plain, "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        optimizer = torch.optim.AdamW(groups, lr=h["learning_rate"], betas=tuple(h["betas"]))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate(self, step: int) -> float:
        h = self.hparams
        warmup = h["warmup_steps"]
        rise = min(1.0, 0.001 + 0.999 * step / warmup) if warmup else 1.0
        if step == 0:  # asked before the loaders are made
            return rise
        if h["schedule"] == "step":
            return rise * 0.1 ** sum(self.current_epoch >= epoch for epoch in h["milestones"])
        return timm_cosine(step, warmup, self.trainer.estimated_stepping_batches, 0.001, 0.01)

    def _check(self, targets: list[Target]) -> None:
        highest = max((int(target["labels"].max()) for target in targets if len(target["labels"])), default=-1)
        if highest >= len(self.config.labels):
            raise InputError(
                f"the data has a label {highest}, expected labels below {len(self.config.labels)}, the number of classes; "
                "set --model.detector.labels"
            )
