"""Training and validation of a classifier by Lightning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.data import Mixup
from torch import Tensor
from torchmetrics.aggregation import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from ..data.loading import processes, seeded
from ..errors import InputError, check_range
from ..models.classifier import ClassifierConfig, build_backbone, level_weights
from ..nn.base import sum_dtype
from ..weights.files import ENTRY, described, description
from ..weights.loading import initialize
from .classes import check_classes
from .optimization import check_rates, decaying, timm_cosine


class ClassificationTask(LightningModule):
    """A network of timm's on labelled images; batches (images ``[B, C, H, W]``, labels int64 ``[B]``) as `ClassificationData` makes them.

    Args:
        model: name in timm, such as "quadtree_b0".
        num_classes: how many.
        options: further arguments of the model, such as ``{drop_path_rate: 0.1}``.
        init_from: start from these weights (a name or a file, see `quadtree models`); a head for other classes is left out.
        learning_rate: the highest; it follows a cosine down to ``min_rate``.
        warmup_epochs, warmup_rate: in these epochs, which may be a fraction, the rate rises from ``warmup_rate``.
        weight_decay, betas: of AdamW; vectors (biases, norms, level weights) do not decay.
        level_rate: factor of the learning rate of the level weights of quadtree attention.
        smoothing: of labels.
        mixup, cutmix: alpha of each, 0 for none; where both are given, one of them is drawn for each batch.
        channels_last: memory layout of the images and convolutions.
        seed: of mixup.

    Raises:
        ValueError: an unknown model or option, or weights that do not fit.
    """

    def __init__(
        self,
        model: str = "quadtree_b0",
        num_classes: int = 1000,
        options: dict[str, Any] | None = None,
        init_from: str | None = None,
        learning_rate: float = 1e-3,
        min_rate: float = 1e-5,
        warmup_epochs: float = 5,
        warmup_rate: float = 1e-6,
        weight_decay: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.999),
        level_rate: float = 1.0,
        smoothing: float = 0.1,
        mixup: float = 0.8,
        cutmix: float = 1.0,
        channels_last: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise InputError(f"num_classes is {num_classes}, expected at least 2")
        others = {
            "mixup": mixup,
            "cutmix": cutmix,
            "level_rate": level_rate,
            "warmup_epochs": warmup_epochs,
            "seed": seed,
        }
        check_rates(learning_rate, weight_decay, betas, **others, min_rate=min_rate, warmup_rate=warmup_rate)
        check_range("smoothing", smoothing, 0, 1)
        self.save_hyperparameters()
        self.model = build_backbone(model, num_classes=num_classes, **(options or {}))
        if init_from is not None:
            initialize(self.model, "classifier", init_from)
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model.to(memory_format=self._layout)
        self._labels: list[str] | None = None  # of the checkpoint
        self._mix = None
        if mixup or cutmix:
            self._mix = Mixup(mixup, cutmix, label_smoothing=smoothing, num_classes=num_classes)
        # They gather over devices by themselves.
        self.top1, self.top5 = (
            MulticlassAccuracy(num_classes, top_k=min(k, num_classes), average="micro") for k in (1, 5)
        )
        self.val_loss = MeanMetric()

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, num_classes]``."""
        return self.model(images.contiguous(memory_format=self._layout))

    def on_train_start(self) -> None:
        """Make sure that the data has as many classes as the head, and those of the checkpoint, if there is one."""
        names, wanted = self._class_names(), self.hparams["num_classes"]
        if names is None:
            return
        if len(names) != wanted:
            raise InputError(
                f"the data has {len(names)} classes, expected num_classes, {wanted}; set --model.num_classes"
            )
        check_classes(names, self._labels)

    on_validation_start = on_test_start = on_train_start

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Loss of a batch, mixed up. All draws depend on seed, epoch, batch and device alone, so that a resumed training repeats them."""
        images, target = batch
        self._check(target, self.hparams["num_classes"])
        place = (self.hparams["seed"], self.current_epoch, index, processes()[1])
        if self._mix is not None:
            if len(images) % 2:
                raise InputError(
                    f"a batch has {len(images)} images, expected an even number for mixup and cutmix; set --data.batch_size"
                )
            with seeded(*place):
                images, target = self._mix(images.clone(), target)
        torch.manual_seed(hash(place))  # drop path
        loss = classification_loss(self(images), target, self.hparams["smoothing"])
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(images))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        """Loss and accuracy of a batch."""
        images, target = batch
        self._check(target, self.hparams["num_classes"])
        logits = self(images).float()
        self.top1.update(logits, target)
        self.top5.update(logits, target)
        self.val_loss.update(classification_loss(logits, target), len(target))

    def on_validation_epoch_end(self) -> None:
        """Log loss and accuracies over all devices."""
        stage = "test" if self.trainer.testing else "val"
        for name, metric in (("loss", self.val_loss), ("top1", self.top1), ("top5", self.top5)):
            self.log(f"{stage}/{name}", metric.compute(), prog_bar=name == "top1")
            metric.reset()

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember which classes it knows."""
        _, config = described(checkpoint, Path("the checkpoint"))
        self._labels = None if config is None else config.get("labels")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """With its configuration a checkpoint is all that quadtree classify and quadtree convert need."""
        names = self._class_names() or [str(n) for n in range(self.hparams["num_classes"])]
        preprocessing = getattr(getattr(self.trainer, "datamodule", None), "preprocessing", {})
        config = ClassifierConfig(self.hparams["model"], names, self.hparams["options"] or {}, **preprocessing)
        checkpoint[ENTRY] = description(config)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, with the learning rate of `timm_cosine`."""
        h = self.hparams
        levels = level_weights(self.model)
        apart = {id(p) for p in levels}
        groups = decaying((p for p in self.model.parameters() if id(p) not in apart), h["weight_decay"])
        if levels:
            groups.append({"params": levels, "weight_decay": 0.0, "lr": h["learning_rate"] * h["level_rate"]})
        optimizer = torch.optim.AdamW(groups, lr=h["learning_rate"], betas=tuple(h["betas"]))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate(self, step: int) -> float:
        h = self.hparams
        low, start = h["min_rate"] / h["learning_rate"], h["warmup_rate"] / h["learning_rate"]
        if (
            step == 0
        ):  # asked before the loaders are made; counting their batches then would keep them from being restored
            return start if h["warmup_epochs"] > 0 else 1.0
        total, epochs = self.trainer.estimated_stepping_batches, self.trainer.max_epochs or -1
        warmup = h["warmup_epochs"] * total / epochs if epochs > 0 else 0
        return timm_cosine(step, warmup, total, start, low)

    def _class_names(self) -> list[str] | None:
        asked = getattr(getattr(self.trainer, "datamodule", None), "class_names", None)
        return asked() if asked is not None else None

    @staticmethod
    def _check(target: Tensor, classes: int) -> None:
        if int(target.max()) >= classes:
            raise InputError(
                f"the data has a label {int(target.max())}, expected labels below num_classes, {classes}; set --model.num_classes"
            )


def classification_loss(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross entropy in float32 or better.

    Args:
        logits: ``[B, classes]``.
        target: labels int64 ``[B]``, to be smoothed; or probabilities ``[B, classes]``, taken as they are.
        smoothing: the share of each label that is spread over all classes.
    """
    logits = sum_dtype(logits)
    return F.cross_entropy(logits, target, label_smoothing=0.0 if target.is_floating_point() else smoothing)
