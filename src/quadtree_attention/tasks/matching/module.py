"""Training and validation of a matcher by Lightning."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from ...models.loftr import LOFTR_PRESETS, LoFTR
from ...weights.registry import load_matcher
from .loss import Supervision, coarse_cross_entropy, coarse_focal_loss, fine_l2_std_loss, homography_supervision, warp_points
from .metrics import error_auc, estimate_homography, homography_corner_error


class MatchingTask(LightningModule):
    """LoFTR on pairs with known homographies; batches as `HomographyDataset` makes them.

    Args:
        preset: name in `LOFTR_PRESETS`.
        options: fields of `LoFTRConfig` to change in it, such as ``{attention: linear}``.
        init_from: start from these weights (a name or a file, see `quadtree models`) instead of random ones.
        learning_rate: the highest, after ``warmup_steps`` steps of linear growth; then a cosine down to nothing if the trainer knows how
            many steps there are (``max_steps`` or ``max_epochs``).
        weight_decay: of AdamW.
        coarse_loss: "focal" (published) or "cross_entropy".
        coarse_weight, fine_weight: of the two parts of the loss.
        fine_matches: true matches an image that refinement is trained on, chosen at random.

    Raises:
        ValueError: an unknown preset or option.
    """

    def __init__(
        self,
        preset: str = "tiny",
        options: dict[str, Any] | None = None,
        init_from: str | None = None,
        learning_rate: float = 1e-3,
        warmup_steps: int = 200,
        weight_decay: float = 0.01,
        coarse_loss: Literal["focal", "cross_entropy"] = "focal",
        coarse_weight: float = 1.0,
        fine_weight: float = 1.0,
        fine_matches: int = 96,
    ) -> None:
        super().__init__()
        if preset not in LOFTR_PRESETS:
            raise ValueError(f"preset is {preset!r}, expected one of {', '.join(LOFTR_PRESETS)}")
        try:
            config = replace(LOFTR_PRESETS[preset], **(options or {}))
        except TypeError as error:
            raise ValueError(f"options of the model do not fit: {error}; see LoFTRConfig for what there is") from None
        self.save_hyperparameters()
        self.hparams["config"] = asdict(config)  # from which quadtree convert builds the model again
        self.model = LoFTR(config).to(memory_format=torch.channels_last)
        if init_from is not None:
            try:
                self.model.load_state_dict(load_matcher(init_from).state_dict())
            except RuntimeError as error:
                raise ValueError(f"init_from {init_from} does not fit the model: {str(error).splitlines()[-1].strip()}") from None
        self._coarse_loss = {"focal": coarse_focal_loss, "cross_entropy": coarse_cross_entropy}[coarse_loss]
        self._validated: list[dict[str, float]] = []

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """``loss``, its parts ``coarse`` and ``fine``, and ``recall``: share of true matches whose row of confidences peaks there."""
        features = self.model.encode(_last(batch["image0"]), _last(batch["image1"]))
        confidence = self.model.confidence(features)
        truth = self._truth(batch)
        coarse = self._coarse_loss(confidence, truth[:3])
        some = self._sample(truth, len(confidence))
        refined = self.model.refine(features, truth.b[some], truth.i[some], truth.j[some])
        fine = fine_l2_std_loss(refined, truth.offset[some])
        with torch.no_grad():
            found = (confidence.argmax(2)[truth.b, truth.i] == truth.j).float()
        return {
            "loss": self.hparams["coarse_weight"] * coarse + self.hparams["fine_weight"] * fine,
            "coarse": coarse,
            "fine": fine,
            "recall": found.mean() if len(found) else found.new_ones(()),
        }

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        parts = self.losses(batch)
        self.log_dict({f"train/{name}": value.detach() for name, value in parts.items()}, prog_bar=True)
        return parts["loss"]

    def on_validation_epoch_start(self) -> None:
        self._validated = []

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        parts = self.losses(batch)
        self.log_dict({f"val/{name}": value for name, value in parts.items()}, batch_size=len(batch["image0"]), sync_dist=True)
        self._validated += validation_rows(self.model(batch["image0"], batch["image1"]), batch["homography"], batch["image0"].shape[-2:])

    def on_validation_epoch_end(self) -> None:
        rows = self._validated
        share = [row["right"] / row["matches"] if row["matches"] else 0.0 for row in rows]
        figures = {
            **error_auc([row["corner_error"] for row in rows], (3, 5, 10)),
            "right@3px": sum(share) / max(len(share), 1),
            "matches": sum(row["matches"] for row in rows) / max(len(rows), 1),
        }
        self.log_dict({f"val/{name}": value for name, value in figures.items()}, prog_bar=True, sync_dist=True)

    def test_step(self, batch: dict[str, Tensor], index: int) -> None:
        self.validation_step(batch, index)

    on_test_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_validation_epoch_end

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=self.hparams["learning_rate"], weight_decay=self.hparams["weight_decay"], betas=(0.9, 0.99)
        )
        warmup = max(1, self.hparams["warmup_steps"])
        total = self.trainer.estimated_stepping_batches

        def factor(step: int) -> float:
            rise = min(1.0, (step + 1) / warmup)
            return rise if math.isinf(total) else rise * 0.5 * (1 + math.cos(math.pi * min(step / total, 1.0)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _truth(self, batch: dict[str, Tensor]) -> Supervision:
        window = self.model.config.fine_window
        return homography_supervision(batch["homography"], batch["visible0"], batch["visible1"], window=window)

    def _sample(self, truth: Supervision, batch: int) -> Tensor:
        """Rows of the true matches that refinement sees in this step."""
        count = min(len(truth.b), batch * self.hparams["fine_matches"])
        return torch.randperm(len(truth.b), device=truth.b.device)[:count]


def validation_rows(found: dict[str, Tensor], homography: Tensor, size: tuple[int, int]) -> list[dict[str, float]]:
    """One row a pair: corner error of the homography that MAGSAC finds, how many matches, how many of them right within 3 pixels.

    found: as `LoFTR.forward` returns it; homography ``[B, 3, 3]``; size: (height, width) of image 0.
    """
    rows = []
    for b, true in enumerate(homography):
        chosen = found["batch_indexes"] == b
        kpts0, kpts1 = found["keypoints0"][chosen].float(), found["keypoints1"][chosen].float()
        error = (warp_points(true[None], kpts0[None])[0] - kpts1).norm(dim=1)
        estimate, _ = estimate_homography(kpts0.cpu().numpy(), kpts1.cpu().numpy(), threshold=3.0)
        corner = homography_corner_error(estimate, true.double().cpu().numpy(), tuple(size))
        rows.append({"corner_error": float(corner), "right": float((error <= 3).sum()), "matches": float(len(error))})
    return rows


def _last(image: Tensor) -> Tensor:
    return image.contiguous(memory_format=torch.channels_last)
