"""Training and validation of a segmenter by Lightning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.aggregation import MeanMetric
from torchmetrics.classification import MulticlassConfusionMatrix

from ..data.recognition.ade20k import IGNORE
from ..models.segmentation import SegmenterConfig
from ..nn.base import sum_dtype
from ..weights.files import ENTRY, description
from .base import changed
from .classes import ClassesTask, numbered
from .optimization import Optimization


class SegmentationTask(ClassesTask):
    """Semantic FPN on images with masks; batches as `SegmentationData` and `CompositeData` make them.

    Args:
        preset: the backbone, a name in timm, such as "quadtree_b0".
        options: fields of `SegmenterConfig` to change, such as ``{neck_channels: 64}``; in its ``options`` further arguments of the backbone, such as
            ``{topk: 32, value_act: relu}``, as published for quadtree_b0 .. quadtree_b4, or ``{pretrained: true}``.
        num_classes: how many.
        init_from: start from these weights (a name or a file, see `quadtree models`): a segmenter's, of which layers of another shape are left
            out, or the backbone of a classifier's.
        optimization: AdamW and its schedule; the backbone's norms do not decay, and the head learns ten times as fast, as published.

    Raises:
        ValueError: an unknown preset or option, or weights that do not fit.
    """

    def __init__(
        self,
        preset: str = "quadtree_b0",
        options: dict[str, Any] | None = None,
        num_classes: int = 150,
        init_from: str | None = None,
        optimization: Optimization = Optimization(
            learning_rate=6e-5,
            schedule="polynomial",
            warmup_steps=1500,
            warmup_start=1e-6,
            head_rate=10.0,
            decayed="all_but_norms",
        ),
    ) -> None:
        super().__init__(changed(SegmenterConfig(preset, numbered(num_classes)), options), init_from, optimization)
        # It gathers over devices by itself.
        self.confusion = MulticlassConfusionMatrix(num_classes, ignore_index=IGNORE)
        self.val_loss = MeanMetric()

    def forward(self, images: Tensor | Sequence[Tensor]) -> Tensor | list[Tensor]:
        """As `SemanticFPN.forward`."""
        return self.model(images)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Loss of a batch."""
        images, masks = batch
        self.check_labels(masks[masks != IGNORE])
        torch.manual_seed(hash(self.chance(index)))  # dropout and drop path
        loss = segmentation_loss(self(images), masks)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(images))
        return loss

    def validation_step(self, batch: tuple[list[Tensor], list[Tensor]], index: int) -> None:
        """Loss and counts of a batch, at the sizes of the masks."""
        for logits, mask in zip(self(batch[0]), batch[1], strict=True):
            self.check_labels(mask[mask != IGNORE])
            logits, mask = logits.float()[None], mask[None]
            if logits.shape[-2:] != mask.shape[-2:]:
                logits = F.interpolate(logits, mask.shape[-2:], mode="bilinear", align_corners=False)
            self.confusion.update(logits.argmax(1), mask)
            self.val_loss.update(segmentation_loss(logits, mask))

    def on_validation_epoch_end(self) -> None:
        """Log loss, mean IoU and pixel accuracy over all devices."""
        scores = segmentation_scores(self.confusion.compute())
        self.log(f"{self.stage}/loss", self.val_loss.compute())
        self.log(f"{self.stage}/miou", scores["miou"], prog_bar=True)
        self.log(f"{self.stage}/accuracy", scores["accuracy"], prog_bar=True)
        self.confusion.reset()
        self.val_loss.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """With the names of the classes, and how images are prepared."""
        data = getattr(self.trainer, "datamodule", None)
        options = {name: value for name, value in self.config.options.items() if name != "pretrained"}
        seen = {} if data is None else {"labels": data.class_names(), **data.preprocessing}
        checkpoint[ENTRY] = description(replace(self.config, options=options, **seen))


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
