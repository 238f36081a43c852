"""Training and validation of a detector by Lightning."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..data.recognition.detection import DetectionData, Target
from ..errors import InputError, check_range
from ..extras import require
from ..models.detection import coco_detector_config
from .base import Task, changed
from .optimization import Optimization


class DetectionTask(Task):
    """A detector on images with boxes, and masks; batches (list of images, list of targets) as `DetectionData` makes them.

    Args:
        preset: a detector for COCO by name, such as "retinanet_quadtree_b2", see `coco_detector_config`.
        options: fields of its `DetectorConfig` to change, such as ``{labels: [cat, dog]}``; ``category_ids`` belong to the labels.
        init_from: start from these weights (a name or a file, see `quadtree models`): a detector's, or the backbone of a classifier's.
        optimization: AdamW and its schedule.
        seed: of drop path and of the samples that Mask R-CNN learns from.

    Raises:
        ValueError: an unknown preset or option, or weights that do not fit.
    """

    scores: Any  # an nn.ModuleDict of torchmetrics' MeanAveragePrecision by kind

    def __init__(
        self,
        preset: str,
        options: dict[str, Any] | None = None,
        init_from: str | None = None,
        optimization: Optimization = Optimization(
            learning_rate=1e-4, schedule="multistep", milestones=(8, 11), warmup_steps=500, end=0.01, weight_decay=1e-4
        ),
        seed: int = 0,
    ) -> None:
        check_range("seed", seed, 0)
        options = dict(options or {})
        if "labels" in options:
            options.setdefault("category_ids", None)
        super().__init__(changed(coco_detector_config(preset), options), init_from, optimization)
        self.seed = seed
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
        """Sum of the losses."""
        images, targets = batch
        self._check(targets)
        torch.manual_seed(hash(self.chance(index, self.seed)))
        losses = self.model(images, targets)
        total = torch.stack(list(losses.values())).sum()
        if not total.isfinite():
            raise InputError(
                f"the loss is {total.item()} at step {self.global_step}; lower --model.optimization.learning_rate"
            )
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
        for kind, metric in self.scores.items():
            values = metric.compute()
            prefix = f"{self.stage}/" if kind == "bbox" else f"{self.stage}/mask_"
            names = {"map": "AP", "map_50": "AP50", "map_75": "AP75", "map_small": "APs", "map_medium": "APm"}
            for key, name in {**names, "map_large": "APl"}.items():
                self.log(prefix + name, values[key].float().clamp(min=0), prog_bar=name == "AP")
            per_class = values["map_per_class"].reshape(-1).tolist()
            for number, value in zip(values["classes"].reshape(-1).tolist(), per_class, strict=True):
                self.log(f"{prefix}AP/{self.config.labels[number]}", max(value, 0.0))
            metric.reset()

    def _check(self, targets: list[Target]) -> None:
        highest = max((int(target["labels"].max()) for target in targets if len(target["labels"])), default=-1)
        if highest >= len(self.config.labels):
            raise InputError(
                f"the data has a label {highest}, expected labels below {len(self.config.labels)}, the number of classes; "
                "set --model.options.labels"
            )
