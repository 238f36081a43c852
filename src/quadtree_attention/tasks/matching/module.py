"""Training of a matcher with Lightning."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torchmetrics.aggregation import CatMetric, MeanMetric, SumMetric

from ...models.loftr import LOFTR_PRESETS, Features, LoFTR
from .loss import Supervision, coarse_cross_entropy, coarse_focal_loss, fine_l2_std_loss, homography_supervision
from .metrics import error_auc, estimate_homography, homography_corner_error, reprojection_errors

AUC_THRESHOLDS = (3, 5, 10)  # pixels
RIGHT = 3.0  # pixels within which a match is right


class MatchingTask(LightningModule):
    """Trains `LoFTR` on pairs of views with known homographies, as `HomographyDataset` makes them.

    Args:
        model: name of a preset.
        overrides: fields of `LoFTRConfig` that are to differ from the preset, such as ``{"attention": "linear"}``.
        weights: to start from: a name or a file, as `load_matcher` takes them; its configuration must be the same.
        learning_rate: of AdamW, at its highest.
        warmup: steps of linear rise; a cosine falls from there to ``final_share`` of the rate at the last step.
        weight_decay: of matrices and kernels; vectors (norms, biases, level weights) have none.
        betas: of AdamW.
        coarse_loss: "focal", the published default, or "cross_entropy".
        positive_weight, negative_weight: of the two terms of the coarse loss.
        fine_weight: of the fine loss, against 1 of the coarse one.
        fine_matches: true matches an image that refinement is trained on, drawn at random.
        channels_last: memory layout of the convolutions.
        seed: of the draws of true matches.
    """

    def __init__(
        self,
        model: str = "tiny",
        overrides: dict[str, Any] | None = None,
        weights: str | None = None,
        learning_rate: float = 1e-3,
        warmup: int = 200,
        final_share: float = 0.01,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.98),
        coarse_loss: Literal["focal", "cross_entropy"] = "focal",
        positive_weight: float = 1.0,
        negative_weight: float = 1.0,
        fine_weight: float = 1.0,
        fine_matches: int = 128,
        channels_last: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if model not in LOFTR_PRESETS:
            raise ValueError(f"model is {model!r}, expected one of {', '.join(LOFTR_PRESETS)}")
        if coarse_loss not in ("focal", "cross_entropy"):
            raise ValueError(f"coarse_loss is {coarse_loss!r}, expected focal or cross_entropy")
        if fine_matches < 1:
            raise ValueError(f"fine_matches is {fine_matches}, expected at least 1")
        self.save_hyperparameters()
        config = replace(LOFTR_PRESETS[model], **(overrides or {}))
        # With its configuration a checkpoint is all that quadtree match and quadtree convert need.
        self.save_hyperparameters({"config": asdict(config)})
        self.model = LoFTR(config)
        if weights is not None:
            from ...weights.registry import load_matcher

            self.model.load_state_dict(load_matcher(weights).state_dict())
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.corner_errors = CatMetric()
        self.right, self.found = SumMetric(), SumMetric()
        self.matches = MeanMetric()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of a batch; see `HomographyDataset` for its keys."""
        features = self.model.encode(batch["image0"], batch["image1"])
        truth = self._truth(batch)
        coarse = self._coarse_loss(self.model.confidence(features), truth)
        fine = self._fine_loss(features, truth, len(batch["image0"]))
        loss = coarse + self.hparams.fine_weight * fine
        size = len(batch["image0"])
        self.log("train/loss", loss, prog_bar=True, batch_size=size)
        self.log_dict({"train/coarse": coarse, "train/fine": fine}, prog_bar=True, batch_size=size)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Match the pairs as `quadtree match` would, and compare with their homographies."""
        result = self.model(batch["image0"], batch["image1"])
        image = result["batch_indexes"].cpu()
        points0, points1 = (result[key].float().cpu().numpy() for key in ("keypoints0", "keypoints1"))
        for k, homography in enumerate(batch["homography"].cpu().double().numpy()):
            mine = (image == k).numpy()
            right = reprojection_errors(points0[mine], points1[mine], homography) <= RIGHT
            estimate, _ = estimate_homography(points0[mine], points1[mine])
            self.corner_errors.update(homography_corner_error(estimate, homography, tuple(batch["image0"].shape[-2:])))
            self.right.update(float(right.sum()))
            self.found.update(float(mine.sum()))
            self.matches.update(float(mine.sum()))

    def on_validation_epoch_end(self) -> None:
        """Log area under the corner-error curve, share of right matches, and matches a pair, over all devices."""
        errors = np.atleast_1d(np.asarray(torch.as_tensor(self.corner_errors.compute()).cpu()))
        values = {f"val/{name}": value for name, value in error_auc(errors, AUC_THRESHOLDS).items()}
        values["val/precision"] = float(self.right.compute() / self.found.compute().clamp(min=1))
        values["val/matches"] = float(self.matches.compute())
        self.log_dict(values, prog_bar=True)
        for metric in (self.corner_errors, self.right, self.found, self.matches):
            metric.reset()

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW; a linear rise, then a cosine over all steps of the training."""
        options = self.hparams
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": options.weight_decay},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, options.learning_rate, tuple(options.betas))
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: rate(step, steps, options.warmup, options.final_share)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _truth(self, batch: dict[str, Tensor]) -> Supervision:
        window = self.model.config.fine_window
        return homography_supervision(batch["homography"], batch["visible0"], batch["visible1"], window=window)

    def _coarse_loss(self, confidence: Tensor, truth: Supervision) -> Tensor:
        loss = coarse_focal_loss if self.hparams.coarse_loss == "focal" else coarse_cross_entropy
        options = self.hparams
        return loss(
            confidence,
            (truth.b, truth.i, truth.j),
            positive_weight=options.positive_weight,
            negative_weight=options.negative_weight,
        )

    def _fine_loss(self, features: Features, truth: Supervision, images: int) -> Tensor:
        chosen = self._draw(truth.b, images)
        predicted = self.model.refine(features, truth.b[chosen], truth.i[chosen], truth.j[chosen])
        return fine_l2_std_loss(predicted, truth.offset[chosen])

    def _draw(self, b: Tensor, images: int) -> Tensor:
        """Rows of true matches, at most ``fine_matches`` an image; the draw depends on the step and the device alone."""
        seed = (self.hparams.seed * 1_000_003 + self.global_step) * 4096 + self.global_rank
        order = torch.randperm(len(b), generator=torch.Generator().manual_seed(seed)).to(b.device)
        order = order[torch.argsort(b[order], stable=True)]  # by image, shuffled within each
        counts = torch.bincount(b, minlength=images)
        rank = torch.arange(len(b), device=b.device) - (counts.cumsum(0) - counts)[b[order]]
        return order[rank < self.hparams.fine_matches]


def rate(step: int, steps: int, warmup: int, final_share: float) -> float:
    """Share of the highest learning rate at a step: a linear rise over ``warmup`` steps, then a cosine."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min((step - warmup) / max(steps - warmup, 1), 1.0)
    return final_share + (1 - final_share) * (1 + float(np.cos(np.pi * progress))) / 2
