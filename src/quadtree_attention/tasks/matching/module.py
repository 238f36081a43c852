"""Training and validation of a matcher by Lightning."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import check_range
from ...models.loftr import LOFTR_PRESETS, LoFTR
from ...models.loftr.matching import expected_position
from ...models.loftr.model import Features
from ..base import Task, changed, of_class, preset_of
from ..optimization import Optimization
from .config import LossConfig
from .loss import coarse_loss, fine_cross_entropy, fine_l2_std_loss
from .metrics import MatchingMetrics
from .sampling import found_matches, true_matches
from .supervision import supervision


class MatchingTask(Task):
    """LoFTR on pairs with known geometry; batches as `HomographyDataset`, `MadeScenes` and `ColmapScene` make them, whose ``supervision`` says which.

    Args:
        preset: name in `LOFTR_PRESETS`.
        options: fields of its `LoFTRConfig` to change, such as ``{attention: linear}``.
        init_from: start from these weights (a name or a file, see `quadtree models`) instead of random ones.
        optimization: AdamW and its schedule.
        loss: its parts and their weights.
        depth_tolerance: see `depth_supervision`; None as published.
        channels_last: memory layout of the images and convolutions.

    Raises:
        ValueError: an unknown preset or option, or weights that do not fit.
    """

    model: LoFTR

    def __init__(
        self,
        preset: str = "tiny",
        options: dict[str, Any] | None = None,
        init_from: str | None = None,
        optimization: Optimization = Optimization(warmup_steps=200, decay=0.5, betas=(0.9, 0.99)),
        loss: LossConfig = LossConfig(),
        depth_tolerance: float | None = 0.2,
        channels_last: bool = True,
    ) -> None:
        if depth_tolerance is not None:
            check_range("depth_tolerance", depth_tolerance, 0, above=True)
        super().__init__(changed(preset_of(LOFTR_PRESETS, preset), options), init_from, optimization, channels_last)
        self.loss = of_class(LossConfig, loss)
        self.depth_tolerance = depth_tolerance
        self.metrics = MatchingMetrics()

    def encode(self, batch: dict[str, Any]) -> tuple[Features, Tensor]:
        """Features of the pairs, and the assignment of their cells, see `LoFTR.assignment`."""
        images = [batch[key].contiguous(memory_format=self.layout) for key in ("image0", "image1")]
        features = self.model.encode(images[0], images[1], batch.get("mask0"), batch.get("mask1"))
        return features, self.model.assignment(features)

    def losses(
        self, batch: dict[str, Any], seed: int = 0, encoded: tuple[Features, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """``loss``, its parts ``coarse`` and ``fine``, and ``recall``: share of true matches whose row of confidences peaks there.

        Args:
            seed: of the matches drawn for refinement.
            encoded: what `encode` gives for the batch, if it is known.
        """
        features, assignment = encoded or self.encode(batch)
        confidence = self.model.without_dustbins(assignment)
        window, masks = self.model.config.fine_window, {"mask0": features.mask0, "mask1": features.mask1}
        truth = supervision(batch, window=window, depth_tolerance=self.depth_tolerance, **masks)
        known = {} if truth.known is None else dict(zip(masks, truth.known, strict=True))  # nothing is said of others
        bins = self.model.config.matching == "optimal_transport"
        coarse = coarse_loss(self.loss, assignment, confidence, truth[:3], dustbins=bins, **{**masks, **known})
        generator = torch.Generator().manual_seed(seed)
        if self.loss.fine_percent is None:
            b, i, j, offset = true_matches(truth, len(confidence), self.loss.fine_matches, generator)
        else:
            found = self.model.select(confidence.detach(), features)[:3]
            share, truths = self.loss.fine_percent, self.loss.fine_truths
            b, i, j, offset = found_matches(found, truth, features, share, truths, window, generator)
        heat = self.model.heat(features, b, i, j)
        fine = heat.new_zeros(())
        if self.loss.fine != "cross_entropy":
            fine = fine + fine_l2_std_loss(expected_position(heat), offset)
        if self.loss.fine != "l2":
            fine = fine + fine_cross_entropy(heat, offset)
        with torch.no_grad():
            peaks = (confidence.argmax(2)[truth.b, truth.i] == truth.j).float()
        return {
            "loss": self.loss.coarse_weight * coarse + self.loss.fine_weight * fine,
            "coarse": coarse,
            "fine": fine,
            "recall": peaks.sum() / max(len(peaks), 1),
        }

    def training_step(self, batch: dict[str, Any], index: int) -> Tensor:
        """Loss of a batch."""
        # By epoch and place in it: a resumed training draws the same, and two devices what one that accumulates draws.
        seed = (self.current_epoch << 32) + index * self.trainer.world_size + self.global_rank
        parts = self.losses(batch, seed)
        values = {f"train/{name}": value.detach() for name, value in parts.items()}
        self.log_dict(values, prog_bar=True, batch_size=len(batch["image0"]))
        return parts["loss"]

    def validation_step(self, batch: dict[str, Any], index: int) -> None:
        """Losses of a batch, and what its matches are worth, as `quadtree match` would find them."""
        encoded = self.encode(batch)
        values = {f"{self.stage}/{name}": value for name, value in self.losses(batch, encoded=encoded).items()}
        self.log_dict(values, batch_size=len(batch["image0"]), sync_dist=True)
        self.metrics.update(batch, self.model.matches(encoded[0]))

    def on_validation_epoch_end(self) -> None:
        """Log what matches are worth, over all devices."""
        self.log_dict({f"{self.stage}/{name}": value for name, value in self.metrics.compute().items()}, prog_bar=True)
        self.metrics.reset()
