"""Training and validation of a matcher by Lightning."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torchmetrics.aggregation import CatMetric, MeanMetric

from ...models.loftr import LOFTR_PRESETS, LoFTR
from ...models.loftr.matching import expected_position
from ...weights.matching import load_matcher
from .loss import (
    Supervision,
    coarse_cross_entropy,
    coarse_focal_loss,
    fine_cross_entropy,
    fine_l2_std_loss,
    homography_supervision,
)
from .metrics import error_auc, estimate_homography, homography_corner_error, reprojection_errors, share_within

AUC_THRESHOLDS = (3, 5, 10)  # pixels
RIGHT = 3.0  # pixels within which a match is right
FINE_LOSSES = ("l2", "cross_entropy", "both")
_COARSE_LOSSES = {"focal": coarse_focal_loss, "cross_entropy": coarse_cross_entropy}


class MatchingTask(LightningModule):
    """LoFTR on pairs with known homographies; batches as `HomographyDataset` makes them.

    Args:
        preset: name in `LOFTR_PRESETS`.
        options: fields of `LoFTRConfig` to change in it, such as ``{attention: linear}``.
        init_from: start from these weights (a name or a file, see `quadtree models`) instead of random ones.
        learning_rate: the highest, after ``warmup_steps`` steps of linear growth; then a cosine down to nothing if the
            trainer knows how many steps there are (``max_steps`` or ``max_epochs``).
        weight_decay, betas: of AdamW; vectors (biases, norms, level weights) do not decay.
        coarse_loss: "focal" (published) or "cross_entropy".
        fine_loss: "l2", of the mean of the heat map, weighted by its deviation (published); "cross_entropy" of the map
            itself; or "both", their sum.
        negative_weight: of the pairs of cells that do not match in the coarse loss, against 1 of those that do.
        coarse_weight, fine_weight: of the two parts of the loss.
        fine_matches: true matches an image that refinement is trained on at most, drawn at random.
        channels_last: memory layout of the images and convolutions.

    Raises:
        ValueError: an unknown preset or option, or weights that do not fit.
    """

    def __init__(
        self,
        preset: str = "tiny",
        options: dict[str, Any] | None = None,
        init_from: str | None = None,
        learning_rate: float = 1e-3,
        warmup_steps: int = 200,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.99),
        coarse_loss: Literal["focal", "cross_entropy"] = "focal",
        fine_loss: Literal["l2", "cross_entropy", "both"] = "l2",
        negative_weight: float = 1.0,
        coarse_weight: float = 1.0,
        fine_weight: float = 1.0,
        fine_matches: int = 96,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        if preset not in LOFTR_PRESETS:
            raise ValueError(f"preset is {preset!r}, expected one of {', '.join(LOFTR_PRESETS)}")
        if coarse_loss not in _COARSE_LOSSES:
            raise ValueError(f"coarse_loss is {coarse_loss!r}, expected {' or '.join(_COARSE_LOSSES)}")
        if fine_loss not in FINE_LOSSES:
            raise ValueError(f"fine_loss is {fine_loss!r}, expected one of {', '.join(FINE_LOSSES)}")
        if fine_matches < 1:
            raise ValueError(f"fine_matches is {fine_matches}, expected at least 1")
        try:
            config = replace(LOFTR_PRESETS[preset], **(options or {}))
        except TypeError as error:
            raise ValueError(f"options do not fit the model: {error}; see LoFTRConfig for what there is") from None
        self.save_hyperparameters()
        self.model = LoFTR(config)
        if init_from is not None:
            try:
                self.model.load_state_dict(load_matcher(init_from).state_dict())
            except RuntimeError as error:
                reason = str(error).splitlines()[-1].strip()
                raise ValueError(f"init_from {init_from} does not fit the model: {reason}") from None
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model.to(memory_format=self._layout)
        # They gather over devices by themselves.
        self.corner_errors, self.right, self.matches = CatMetric(), MeanMetric(), MeanMetric()

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """``loss``, its parts ``coarse`` and ``fine``, and ``recall``: share of true matches whose row of confidences peaks there."""
        images = [batch[key].contiguous(memory_format=self._layout) for key in ("image0", "image1")]
        features = self.model.encode(*images)
        confidence = self.model.confidence(features)
        window = self.model.config.fine_window
        truth = homography_supervision(batch["homography"], batch["visible0"], batch["visible1"], window=window)
        coarse_loss = _COARSE_LOSSES[self.hparams["coarse_loss"]]
        coarse = coarse_loss(confidence, truth[:3], negative_weight=self.hparams["negative_weight"])
        some = self._draw(truth, len(confidence))
        heat = self.model.heat(features, truth.b[some], truth.i[some], truth.j[some])
        fine = heat.new_zeros(())
        if self.hparams["fine_loss"] != "cross_entropy":
            fine = fine + fine_l2_std_loss(expected_position(heat), truth.offset[some])
        if self.hparams["fine_loss"] != "l2":
            fine = fine + fine_cross_entropy(heat, truth.offset[some])
        with torch.no_grad():
            found = (confidence.argmax(2)[truth.b, truth.i] == truth.j).float()
        return {
            "loss": self.hparams["coarse_weight"] * coarse + self.hparams["fine_weight"] * fine,
            "coarse": coarse,
            "fine": fine,
            "recall": found.sum() / max(len(found), 1),
        }

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        """Loss of a batch."""
        parts = self.losses(batch)
        values = {f"train/{name}": value.detach() for name, value in parts.items()}
        self.log_dict(values, prog_bar=True, batch_size=len(batch["image0"]))
        return parts["loss"]

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        """Loss of a batch; then match it as `quadtree match` would, and compare with the truth."""
        values = {f"val/{name}": value for name, value in self.losses(batch).items()}
        self.log_dict(values, batch_size=len(batch["image0"]), sync_dist=True)
        result = self.model(batch["image0"], batch["image1"])
        points0, points1 = (result[key].float().cpu().numpy() for key in ("keypoints0", "keypoints1"))
        image = result["batch_indexes"].cpu().numpy()
        size = (int(batch["image0"].shape[-2]), int(batch["image0"].shape[-1]))
        for k, homography in enumerate(batch["homography"].double().cpu().numpy()):
            mine = image == k
            estimate, _ = estimate_homography(points0[mine], points1[mine])
            self.corner_errors.update(homography_corner_error(estimate, homography, size))
            self.right.update(share_within(reprojection_errors(points0[mine], points1[mine], homography), RIGHT))
            self.matches.update(float(mine.sum()))

    def on_validation_epoch_end(self) -> None:
        """Log area under the curve of corner errors, share of right matches, and matches a pair, over all devices."""
        errors = torch.as_tensor(self.corner_errors.compute()).reshape(-1).cpu().numpy()
        values = {f"val/{name}": value for name, value in error_auc(errors, AUC_THRESHOLDS).items()}
        values[f"val/right@{RIGHT:g}px"] = float(self.right.compute())
        values["val/matches"] = float(self.matches.compute())
        self.log_dict(values, prog_bar=True)
        for metric in (self.corner_errors, self.right, self.matches):
            metric.reset()

    def test_step(self, batch: dict[str, Tensor], index: int) -> None:
        """As `validation_step`."""
        self.validation_step(batch, index)

    on_test_epoch_end = on_validation_epoch_end

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """With its configuration a checkpoint is all that quadtree match and quadtree convert need."""
        checkpoint["config"] = asdict(self.model.config)

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW, with the learning rate of `rate`."""
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": self.hparams["weight_decay"]},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.hparams["learning_rate"], betas=tuple(self.hparams["betas"]))
        warmup, total = self.hparams["warmup_steps"], self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, warmup, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _draw(self, truth: Supervision, images: int) -> Tensor:
        """Rows of at most ``fine_matches`` true matches an image.

        The draw depends on the step and the device alone, so that a resumed training repeats it.
        """
        b = truth.b
        device, step = (self.global_rank, self.global_step) if self._trainer is not None else (0, 0)
        generator = torch.Generator().manual_seed(step * 65536 + device)
        order = torch.randperm(len(b), generator=generator).to(b.device)
        order = order[torch.argsort(b[order], stable=True)]  # by image, shuffled within each
        counts = torch.bincount(b, minlength=images)
        place = torch.arange(len(b), device=b.device) - (counts.cumsum(0) - counts)[b[order]]
        return order[place < self.hparams["fine_matches"]]


def rate(step: int, warmup: int, total: float) -> float:
    """Share of the highest learning rate at a step: a linear rise, and a cosine down to nothing at ``total``, if finite."""
    rise = min(1.0, (step + 1) / max(1, warmup))
    return rise if math.isinf(total) else rise * 0.5 * (1 + math.cos(math.pi * min(step / total, 1.0)))
