"""Training and validation of a classifier by Lightning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor
from torchmetrics.aggregation import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from ..data.loading import seeded
from ..errors import InputError, check_range
from ..models.classifier import ClassifierConfig, build_backbone
from ..nn.base import sum_dtype
from ..weights.files import ENTRY, description
from .classes import ClassesTask, numbered
from .optimization import Optimization


class ClassificationTask(ClassesTask):
    """A network of timm's on labelled images; batches (images ``[B, C, H, W]``, labels int64 ``[B]``) as `ClassificationData` makes them.

    Args:
        preset: name in timm, such as "quadtree_b0".
        options: further arguments of it, such as ``{drop_path_rate: 0.1}``.
        num_classes: how many.
        init_from: start from these weights (a name or a file, see `quadtree models`); a head for other classes is left out.
        optimization: AdamW and its schedule.
        smoothing: of labels.
        mixup, cutmix: alpha of each, 0 for none; where both are given, one of them is drawn for each batch.
        channels_last: memory layout of the images and convolutions.
        seed: of mixup and drop path.

    Raises:
        ValueError: an unknown preset or option, or weights that do not fit.
    """

    def __init__(
        self,
        preset: str = "quadtree_b0",
        options: dict[str, Any] | None = None,
        num_classes: int = 1000,
        init_from: str | None = None,
        optimization: Optimization = Optimization(end=0.01, warmup_epochs=5, weight_decay=0.05),
        smoothing: float = 0.1,
        mixup: float = 0.8,
        cutmix: float = 1.0,
        channels_last: bool = False,
        seed: int = 0,
    ) -> None:
        for name, value in (("mixup", mixup), ("cutmix", cutmix), ("seed", seed)):
            check_range(name, value, 0)
        check_range("smoothing", smoothing, 0, 1)
        config = ClassifierConfig(preset, numbered(num_classes), options or {})
        super().__init__(config, init_from, optimization, channels_last)
        self.smoothing, self.seed = smoothing, seed
        self.mix = Mixup(mixup, cutmix, label_smoothing=smoothing, num_classes=num_classes) if mixup or cutmix else None
        # They gather over devices by themselves.
        self.top1, self.top5 = (
            MulticlassAccuracy(num_classes, top_k=min(k, num_classes), average="micro") for k in (1, 5)
        )
        self.val_loss = MeanMetric()

    def network(self, config: ClassifierConfig) -> Any:
        """As `ClassifierConfig.build`, but channels of images are as ``options`` has them."""
        return build_backbone(config.model, num_classes=len(config.labels), **config.options)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, num_classes]``."""
        return self.model(images.contiguous(memory_format=self.layout))

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Loss of a batch, mixed up."""
        images, target = batch
        self.check_labels(target)
        chance = self.chance(index, self.seed)
        if self.mix is not None:
            if len(images) % 2:
                raise InputError(
                    f"a batch has {len(images)} images, expected an even number for mixup and cutmix; set --data.batch_size"
                )
            with seeded(*chance):
                images, target = self.mix(images.clone(), target)
        torch.manual_seed(hash(chance))  # drop path
        loss = classification_loss(self(images), target, self.smoothing)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(images))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Loss and accuracy of a batch."""
        images, target = batch
        self.check_labels(target)
        logits = self(images).float()
        self.top1.update(logits, target)
        self.top5.update(logits, target)
        self.val_loss.update(classification_loss(logits, target), len(target))

    def on_validation_epoch_end(self) -> None:
        """Log loss and accuracies over all devices."""
        for name, metric in (("loss", self.val_loss), ("top1", self.top1), ("top5", self.top5)):
            self.log(f"{self.stage}/{name}", metric.compute(), prog_bar=name == "top1")
            metric.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """With the names of the classes, and how images are prepared."""
        seen = getattr(getattr(self.trainer, "datamodule", None), "preprocessing", {})
        checkpoint[ENTRY] = description(replace(self.config, labels=self.class_names() or self.config.labels, **seen))


def classification_loss(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross entropy in float32 or better.

    Args:
        logits: ``[B, classes]``.
        target: labels int64 ``[B]``, to be smoothed; or probabilities ``[B, classes]``, taken as they are.
        smoothing: the share of each label that is spread over all classes.
    """
    logits = sum_dtype(logits)
    return F.cross_entropy(logits, target, label_smoothing=0.0 if target.is_floating_point() else smoothing)
