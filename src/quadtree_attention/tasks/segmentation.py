"""Training and validation of a segmenter by Lightning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics.aggregation import MeanMetric
from torchmetrics.classification import MulticlassConfusionMatrix

from ..data.loading import processes
from ..data.recognition.ade20k import IGNORE
from ..errors import InputError, check_range
from ..models.classifier import level_weights
from ..models.segmentation import Norm, SegmenterConfig
from ..nn.base import sum_dtype
from ..weights.files import ENTRY, described, description
from ..weights.loading import initialize
from .classes import check_classes
from .optimization import check_rates, polynomial


class SegmentationTask(LightningModule):
    """Semantic FPN on images with masks; batches as `SegmentationData` and `CompositeData` make them.

    Args:
        backbone: name in timm, such as "quadtree_b0".
        num_classes: how many.
        options: further arguments of the backbone, such as ``{topk: 32, value_act: relu}``, as published for quadtree_b0 .. quadtree_b4, or
            ``{pretrained: true}``.
        neck_channels, head_channels, norm, dropout: as `SegmenterConfig`.
        init_from: start from these weights (a name or a file, see `quadtree models`): a segmenter's, of which layers of another shape are left
            out, or the backbone of a classifier's.
        learning_rate: the highest of the backbone and neck; it falls as a polynomial, to 0 at the end of the training.
        head_rate: factor of the head's.
        level_rate: factor of the learning rate of the level weights of quadtree attention.
        power: exponent of the polynomial.
        warmup_steps, warmup_rate: over these steps the rate rises from ``warmup_rate`` times what it would be.
        weight_decay, betas: of AdamW; the backbone's norms do not decay, as published.

    Raises:
        ValueError: an unknown backbone or option, or weights that do not fit.
    """

    def __init__(
        self,
        backbone: str = "quadtree_b0",
        num_classes: int = 150,
        options: dict[str, Any] | None = None,
        neck_channels: int = 256,
        head_channels: int = 128,
        norm: Norm = "batch",
        dropout: float = 0.1,
        init_from: str | None = None,
        learning_rate: float = 6e-5,
        head_rate: float = 10.0,
        level_rate: float = 1.0,
        power: float = 1.0,
        warmup_steps: int = 1500,
        warmup_rate: float = 1e-6,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise InputError(f"num_classes is {num_classes}, expected at least 2")
        rates = {"head_rate": head_rate, "level_rate": level_rate, "warmup_rate": warmup_rate}
        check_rates(learning_rate, weight_decay, betas, **rates, power=power, warmup_steps=warmup_steps)
        check_range("dropout", dropout, 0, 1)
        check_range("neck_channels", neck_channels, 1)
        check_range("head_channels", head_channels, 1)
        self.save_hyperparameters()
        labels = [str(n) for n in range(num_classes)]
        self.model = SegmenterConfig(
            backbone, labels, options or {}, neck_channels, head_channels, norm, dropout
        ).build()
        if init_from is not None:
            initialize(self.model, "segmenter", init_from)
        # It gathers over devices by itself.
        self.confusion = MulticlassConfusionMatrix(num_classes, ignore_index=IGNORE)
        self.val_loss = MeanMetric()
        self._labels: list[str] | None = None  # of the checkpoint

    def setup(self, stage: str) -> None:
        """Raises a ValueError if the data has another number of classes."""
        data, classes = getattr(self.trainer, "datamodule", None), self.hparams["num_classes"]
        if data is not None and len(data.class_names()) != classes:
            raise InputError(
                f"the data has {len(data.class_names())} classes, expected num_classes, {classes}; set --model.num_classes"
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember which classes it knows."""
        _, config = described(checkpoint, Path("the checkpoint"))
        self._labels = None if config is None else config.get("labels")

    def on_train_start(self) -> None:
        """Raises a ValueError if the checkpoint, if there is one, knows other classes than the data has."""
        data = getattr(self.trainer, "datamodule", None)
        if data is not None:
            check_classes(data.class_names(), self._labels)

    on_validation_start = on_test_start = on_train_start

    def forward(self, images: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
        """As `SemanticFPN.forward`."""
        return self.model(images)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Loss of a batch. What is dropped depends on epoch, batch and device alone, so that a resumed training repeats it."""
        images, masks = batch
        self._check(masks)
        torch.manual_seed(hash((self.current_epoch, index, processes()[1])))  # dropout and drop path
        loss = segmentation_loss(self(images), masks)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(images))
        return loss

    def validation_step(self, batch: tuple[list[Tensor], list[Tensor]], index: int) -> None:
        """Loss and counts of a batch, at the sizes of the masks."""
        for logits, mask in zip(self(batch[0]), batch[1], strict=True):
            self._check(mask)
            logits, mask = logits.float()[None], mask[None]
            if logits.shape[-2:] != mask.shape[-2:]:
                logits = F.interpolate(logits, mask.shape[-2:], mode="bilinear", align_corners=False)
            self.confusion.update(logits.argmax(1), mask)
            self.val_loss.update(segmentation_loss(logits, mask))

    def on_validation_epoch_end(self) -> None:
        """Log loss, mean IoU and pixel accuracy over all devices."""
        stage = "test" if self.trainer.testing else "val"
        scores = segmentation_scores(self.confusion.compute())
        self.log(f"{stage}/loss", self.val_loss.compute())
        self.log(f"{stage}/miou", scores["miou"], prog_bar=True)
        self.log(f"{stage}/accuracy", scores["accuracy"], prog_bar=True)
        self.confusion.reset()
        self.val_loss.reset()

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """With its configuration a checkpoint is all that quadtree segment and quadtree convert need."""
        data = getattr(self.trainer, "datamodule", None)
        config = self.model.config
        options = {name: value for name, value in config.options.items() if name != "pretrained"}
        seen = {} if data is None else {"labels": data.class_names(), **data.preprocessing}
        checkpoint[ENTRY] = description(replace(config, options=options, **seen))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, with the learning rate of `polynomial`."""
        h = self.hparams
        levels = {id(p) for p in level_weights(self.model)}
        groups: dict[tuple[float, float], list[Tensor]] = {}
        for name, p in self.model.named_parameters():
            factor = h["level_rate"] if id(p) in levels else h["head_rate"] if name.startswith("head.") else 1.0
            decay = 0.0 if "norm" in name else h["weight_decay"]
            groups.setdefault((factor, decay), []).append(p)
        optimizer = torch.optim.AdamW(
            [
                {"params": params, "lr": h["learning_rate"] * factor, "weight_decay": decay}
                for (factor, decay), params in groups.items()
            ],
            betas=tuple(h["betas"]),
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate(self, step: int) -> float:
        h = self.hparams
        # At step 0 the loaders are not made; counting their batches then would keep them from being restored.
        total = self.trainer.estimated_stepping_batches if step else 1
        return polynomial(step, total, h["power"], h["warmup_steps"], h["warmup_rate"])

    def _check(self, mask: Tensor) -> None:
        classes = self.hparams["num_classes"]
        labels = mask[mask != IGNORE]
        if labels.numel() and int(labels.max()) >= classes:
            raise InputError(
                f"the data has a label {int(labels.max())}, expected labels below num_classes, {classes}; set --model.num_classes"
            )


def segmentation_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Cross entropy in float32 or better, its mean over all pixels; those without a class (255) count as 0, as in mmsegmentation.

    Args:
        logits: ``[B, classes, H, W]``.
        masks: int64 ``[B, H, W]``.
    """
    logits = sum_dtype(logits)
    return F.cross_entropy(logits, masks, ignore_index=IGNORE, reduction="sum") / masks.numel()


def segmentation_scores(confusion: Tensor) -> dict[str, Any]:
    """Scores from counts ``[classes, classes]`` of pixels, true class by found class.

    Returns:
        miou: the mean of the classes' intersections over unions, over classes that were there or were found; accuracy: share of right pixels;
        iou: of each class, NaN where it was neither there nor found.
    """
    confusion = confusion.double()
    right = confusion.diagonal()
    iou = right / (confusion.sum(0) + confusion.sum(1) - right)
    return {"miou": iou.nanmean(), "accuracy": right.sum() / confusion.sum(), "iou": iou}
