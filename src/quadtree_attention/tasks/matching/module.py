"""Training and validation of a matcher by Lightning."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics.aggregation import CatMetric, MeanMetric

from ...errors import InputError, check_range
from ...evaluation import metrics
from ...models.loftr import LOFTR_PRESETS, LoFTR
from ...models.loftr.matching import expected_position
from ...models.loftr.model import STRIDE, Features
from ...weights.files import ENTRY, description
from ...weights.loading import initialize
from ..optimization import check_rates, decaying, rise_and_cosine
from .loss import (
    coarse_cross_entropy,
    coarse_focal_loss,
    coarse_sparse_focal_loss,
    fine_cross_entropy,
    fine_l2_std_loss,
)
from .supervision import Supervision, depth_supervision, fine_target, homography_supervision, point_supervision

PIXELS, DEGREES = (3, 5, 10), (5, 10, 20)  # thresholds of the AUC of homographies and of poses
RIGHT = 3.0  # pixels within which a match is right
RIGHT_EPIPOLAR = 5e-4  # squared epipolar distance in calibrated coordinates, likewise
GEOMETRY = ("K0", "K1", "T_0to1", "to_stored0", "to_stored1")  # entries of a batch
FINE_LOSSES = ("l2", "cross_entropy", "both")
SCHEDULES = ("cosine", "multistep")
_COARSE_LOSSES = {"focal": coarse_focal_loss, "cross_entropy": coarse_cross_entropy}


class MatchingTask(LightningModule):
    """LoFTR on pairs with known geometry: homographies, as `HomographyDataset` has them, or depth and pose, as `MadeScenes` has them.

    Args:
        preset: name in `LOFTR_PRESETS`.
        options: fields of `LoFTRConfig` to change in it, such as ``{attention: linear}``.
        init_from: start from these weights (a name or a file, see `quadtree models`) instead of random ones.
        learning_rate: the highest, after ``warmup_steps`` steps of linear growth from the share ``warmup_start`` of it.
        schedule: "cosine", down to nothing if the trainer knows how many steps there are (``max_steps`` or ``max_epochs``); or
            "multistep": times ``decay`` when each of the epochs ``milestones`` begins.
        canonical_batch: pairs a step, over all devices and accumulated batches, for which ``learning_rate`` and ``warmup_steps`` are meant; of
            another number the rate is that many times as high and the warm-up as short, as published. None: no such scaling.
        weight_decay, betas: of AdamW.
        decay_vectors: whether vectors (biases, norms, level weights) decay too, as published.
        coarse_loss: "focal" (published) or "cross_entropy".
        confidence_floor: true matches with a confidence below it have no part in the coarse loss's gradient; 1e-6 as published.
        fine_loss: "l2", of the mean of the heat map, weighted by its deviation (published); "cross_entropy" of the map
            itself; or "both", their sum.
        coarse_pairs: "dense": the coarse loss is on every pair of cells (the published default); "sparse": on those that match, and with optimal
            transport on the dustbins of cells that match nothing, as in LoFTR's paper. Sparse needs the focal loss.
        negative_weight: of the pairs of cells that do not match in the coarse loss, or of the dustbins, against 1 of those that do.
        coarse_weight, fine_weight: of the two parts of the loss.
        fine_matches: true matches an image that refinement is trained on at most, drawn at random.
        fine_percent: train refinement on what matching finds instead, as published: on this share (0.2 indoors, 0.3 outdoors) of as many
            matches as a batch can have, drawn at random where there are more, and filled up with true ones.
        fine_truths: with ``fine_percent``, true matches a batch at least.
        depth_tolerance: see `depth_supervision`; None as published.
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
        warmup_start: float = 0.0,
        schedule: Literal["cosine", "multistep"] = "cosine",
        milestones: tuple[int, ...] = (),
        decay: float = 0.5,
        canonical_batch: int | None = None,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.99),
        decay_vectors: bool = False,
        coarse_loss: Literal["focal", "cross_entropy"] = "focal",
        confidence_floor: float = 1e-30,
        fine_loss: Literal["l2", "cross_entropy", "both"] = "l2",
        coarse_pairs: Literal["dense", "sparse"] = "dense",
        negative_weight: float = 1.0,
        coarse_weight: float = 1.0,
        fine_weight: float = 1.0,
        fine_matches: int = 96,
        fine_percent: float | None = None,
        fine_truths: int = 200,
        depth_tolerance: float | None = 0.2,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        weights = {"negative_weight": negative_weight, "coarse_weight": coarse_weight, "fine_weight": fine_weight}
        check_rates(learning_rate, weight_decay, betas, **weights, warmup_steps=warmup_steps, decay=decay)
        check_range("warmup_start", warmup_start, 0, 1)
        if depth_tolerance is not None:
            check_range("depth_tolerance", depth_tolerance, 0, above=True)
        if preset not in LOFTR_PRESETS:
            raise InputError(f"preset is {preset!r}, expected one of {', '.join(LOFTR_PRESETS)}")
        if coarse_loss not in _COARSE_LOSSES:
            raise InputError(f"coarse_loss is {coarse_loss!r}, expected {' or '.join(_COARSE_LOSSES)}")
        if coarse_pairs not in ("dense", "sparse") or (coarse_pairs, coarse_loss) == ("sparse", "cross_entropy"):
            raise InputError(
                f"coarse_pairs is {coarse_pairs!r} with coarse_loss {coarse_loss!r}, expected dense, or sparse with focal"
            )
        if canonical_batch is not None and canonical_batch < 1:
            raise InputError(f"canonical_batch is {canonical_batch}, expected at least 1 pair a step, or null")
        if not 0 < confidence_floor < 0.5:
            raise InputError(f"confidence_floor is {confidence_floor}, expected above 0 and below 0.5")
        if fine_loss not in FINE_LOSSES:
            raise InputError(f"fine_loss is {fine_loss!r}, expected one of {', '.join(FINE_LOSSES)}")
        if schedule not in SCHEDULES:
            raise InputError(f"schedule is {schedule!r}, expected {' or '.join(SCHEDULES)}")
        if fine_matches < 1 or fine_truths < 0:
            raise InputError(
                f"fine_matches is {fine_matches}, expected at least 1, and fine_truths is {fine_truths}, expected 0 or more"
            )
        if fine_percent is not None and not 0 < fine_percent <= 1:
            raise InputError(f"fine_percent is {fine_percent}, expected a share of matches above 0 and up to 1")
        try:
            config = replace(LOFTR_PRESETS[preset], **(options or {}))
        except TypeError as error:
            raise InputError(f"options do not fit the model: {error}; see LoFTRConfig for what there is") from None
        self.save_hyperparameters()
        self.model = LoFTR(config)
        if init_from is not None:
            initialize(self.model, "matcher", init_from)
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model.to(memory_format=self._layout)
        # They gather over devices by themselves.
        self.corner_errors, self.pose_errors = CatMetric(), CatMetric()
        self.right, self.epipolar, self.matches = MeanMetric(), MeanMetric(), MeanMetric()

    def losses(self, batch: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
        """``loss``, its parts ``coarse`` and ``fine``, and ``recall``: share of true matches whose row of confidences peaks there.

        seed: of the matches drawn for refinement.
        """
        images = [batch[key].contiguous(memory_format=self._layout) for key in ("image0", "image1")]
        features = self.model.encode(images[0], images[1], batch.get("mask0"), batch.get("mask1"))
        masks = {"mask0": features.mask0, "mask1": features.mask1}
        assignment = self.model.assignment(features)
        confidence = self.model.without_dustbins(assignment)
        truth = self._truth(batch, masks)
        coarse = self._coarse_loss(assignment, confidence, truth, masks)
        b, i, j, offset = self._fine_matches(truth, confidence, features, torch.Generator().manual_seed(seed))
        heat = self.model.heat(features, b, i, j)
        fine = heat.new_zeros(())
        if self.hparams["fine_loss"] != "cross_entropy":
            fine = fine + fine_l2_std_loss(expected_position(heat), offset)
        if self.hparams["fine_loss"] != "l2":
            fine = fine + fine_cross_entropy(heat, offset)
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
        # By epoch and place in it: a resumed training draws the same, and two devices what one that accumulates draws.
        seed = (self.current_epoch << 32) + index * self.trainer.world_size + self.global_rank
        parts = self.losses(batch, seed)
        values = {f"train/{name}": value.detach() for name, value in parts.items()}
        self.log_dict(values, prog_bar=True, batch_size=len(batch["image0"]))
        return parts["loss"]

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        """Loss of a batch; then match it as `quadtree match` would, and compare with the truth."""
        values = {f"val/{name}": value for name, value in self.losses(batch).items()}
        self.log_dict(values, batch_size=len(batch["image0"]), sync_dist=True)
        result = self.model(batch["image0"], batch["image1"], batch.get("mask0"), batch.get("mask1"))
        points0, points1 = (result[key].float().cpu().numpy() for key in ("keypoints0", "keypoints1"))
        image = result["batch_indexes"].cpu().numpy()
        size = (int(batch["image0"].shape[-2]), int(batch["image0"].shape[-1]))
        for k in range(len(batch["image0"])):
            mine = points0[image == k], points1[image == k]
            if "homography" in batch:
                self._judge_homography(*mine, batch["homography"][k].double().cpu().numpy(), size)
            else:
                geometry = {name: batch[name][k].double().cpu().numpy() for name in GEOMETRY if name in batch}
                self._judge_pose(*mine, geometry)
            self.matches.update(float(len(mine[0])))

    def _judge_homography(
        self, points0: np.ndarray, points1: np.ndarray, homography: np.ndarray, size: tuple[int, int]
    ) -> None:
        estimate, _ = metrics.estimate_homography(points0, points1)
        self.corner_errors.update(metrics.homography_corner_error(estimate, homography, size))
        errors = metrics.reprojection_errors(points0, points1, homography)
        self.right.update(metrics.share_within(errors, RIGHT))

    def _judge_pose(self, points0: np.ndarray, points1: np.ndarray, geometry: dict[str, np.ndarray]) -> None:
        """In pixels of the images as stored, where these are known: RANSAC's threshold is in these, as published."""
        K0, K1, T_0to1 = (geometry[name] for name in ("K0", "K1", "T_0to1"))
        if "to_stored0" in geometry:
            points0, points1 = (
                metrics.warp_points(geometry[f"to_stored{k}"], points) for k, points in enumerate((points0, points1))
            )
            K0, K1 = (geometry[f"to_stored{k}"] @ K for k, K in enumerate((K0, K1)))
        pose = metrics.estimate_pose(points0, points1, K0, K1)
        error = math.inf if pose is None else max(metrics.relative_pose_error(T_0to1, pose.R, pose.t))
        self.pose_errors.update(error)
        E = metrics.essential_matrix(T_0to1)
        distances = metrics.symmetric_epipolar_distance(points0, points1, E, K0, K1)
        self.epipolar.update(metrics.share_within(distances, RIGHT_EPIPOLAR))

    def on_validation_epoch_end(self) -> None:
        """Log, over all devices: areas under the curve of corner or pose errors, share of right matches, and matches a pair."""
        values = {"val/matches": float(self.matches.compute())}
        for name, errors, thresholds, share, right in (
            ("auc", self.corner_errors, PIXELS, f"right@{RIGHT:g}px", self.right),
            ("pose_auc", self.pose_errors, DEGREES, f"prec@{RIGHT_EPIPOLAR:.0e}", self.epipolar),
        ):
            if not errors.update_called:
                continue
            areas = metrics.error_auc(torch.as_tensor(errors.compute()).reshape(-1).cpu().numpy(), thresholds)
            values |= {
                f"val/{name}@{threshold}": area for threshold, area in zip(thresholds, areas.values(), strict=True)
            }
            values[f"val/{share}"] = float(right.compute())
        self.log_dict(values, prog_bar=True)
        for metric in (self.corner_errors, self.pose_errors, self.right, self.epipolar, self.matches):
            metric.reset()

    def test_step(self, batch: dict[str, Tensor], index: int) -> None:
        """As `validation_step`."""
        self.validation_step(batch, index)

    on_test_epoch_end = on_validation_epoch_end

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """With its configuration a checkpoint is all that quadtree match and quadtree convert need."""
        checkpoint[ENTRY] = description(self.model.config)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, with the learning rate of ``schedule``."""
        groups = decaying(self.parameters(), self.hparams["weight_decay"], self.hparams["decay_vectors"])
        highest = self.hparams["learning_rate"] * self._scaling()
        optimizer = torch.optim.AdamW(groups, lr=highest, betas=tuple(self.hparams["betas"]))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate(self, step: int) -> float:
        """Share of the highest learning rate at a step."""
        warmup, start = int(self.hparams["warmup_steps"] / self._scaling()), self.hparams["warmup_start"]
        rise = rise_and_cosine(step, warmup, math.inf, start)
        if (
            step == 0
        ):  # asked before the loaders are made; counting their batches then would keep them from being restored
            return rise
        if self.hparams["schedule"] == "cosine":
            return rise_and_cosine(step, warmup, self.trainer.estimated_stepping_batches, start)
        steps = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        return rise * self.hparams["decay"] ** sum(step >= epoch * steps for epoch in self.hparams["milestones"])

    def _scaling(self) -> float:
        """Pairs a step over those that the learning rate is meant for."""
        if self.hparams["canonical_batch"] is None:
            return 1.0
        batch = getattr(getattr(self.trainer, "datamodule", None), "batch_size", None)
        if batch is None:
            raise InputError("canonical_batch needs a data module with a batch_size; give one, or set it to null")
        pairs = batch * self.trainer.world_size * self.trainer.accumulate_grad_batches
        return pairs / self.hparams["canonical_batch"]

    def _coarse_loss(
        self, assignment: Tensor, confidence: Tensor, truth: Supervision, masks: dict[str, Tensor | None]
    ) -> Tensor:
        options = {
            "negative_weight": self.hparams["negative_weight"],
            "floor": self.hparams["confidence_floor"],
            **masks,
        }
        if truth.known is not None:  # of other cells nothing can be said
            options["mask0"], options["mask1"] = truth.known
        if self.hparams["coarse_pairs"] == "sparse":
            dustbins = self.model.config.matching == "optimal_transport"
            return coarse_sparse_focal_loss(assignment, truth[:3], dustbins=dustbins, **options)
        return _COARSE_LOSSES[self.hparams["coarse_loss"]](confidence, truth[:3], **options)

    def _truth(self, batch: dict[str, Tensor], masks: dict[str, Tensor | None]) -> Supervision:
        """What is true of a batch, by what it holds."""
        window, mask0, mask1 = self.model.config.fine_window, masks["mask0"], masks["mask1"]
        if "homography" in batch:
            visible = batch["visible0"], batch["visible1"]
            return homography_supervision(batch["homography"], *visible, window=window, mask0=mask0, mask1=mask1)
        K0, K1, T_0to1 = (batch[key] for key in ("K0", "K1", "T_0to1"))
        if "points0" in batch:
            size0, size1 = ((image.shape[-2], image.shape[-1]) for image in (batch["image0"], batch["image1"]))
            points = batch["points0"], batch["points1"]
            return point_supervision(*points, K0, K1, T_0to1, size0, size1, window=window, mask0=mask0, mask1=mask1)
        depths, tolerance = (batch["depth0"], batch["depth1"]), self.hparams["depth_tolerance"]
        return depth_supervision(*depths, K0, K1, T_0to1, window=window, tolerance=tolerance, mask0=mask0, mask1=mask1)

    def _fine_matches(
        self, truth: Supervision, confidence: Tensor, features: Features, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Matches to train refinement on, (b, i, j) ``[M]``, and what it is to find ``[M, 2]``."""
        if self.hparams["fine_percent"] is None:
            rows = self._draw(truth, len(confidence), generator)
            return truth.b[rows], truth.i[rows], truth.j[rows], truth.offset[rows]
        found = torch.stack(self.model.select(confidence.detach(), features)[:3])  # [3, F]
        true = torch.stack(truth[:3])
        cells = [c.shape[1] * c.shape[2] for c in (features.coarse0, features.coarse1)]
        most = len(confidence) * max(cells)
        if features.mask0 is not None and features.mask1 is not None:
            valid = torch.stack([features.mask0.flatten(1).sum(1), features.mask1.flatten(1).sum(1)])
            most = int(valid.amin(0).sum())
        wanted = int(most * self.hparams["fine_percent"])
        truths = max(min(self.hparams["fine_truths"], wanted), wanted - found.shape[1])
        if found.shape[1] > wanted - truths:
            found = found[:, _random(found.shape[1], wanted - truths, generator).to(found.device)]
        b, i, j = torch.cat([found, true[:, _random(true.shape[1], truths, generator).to(true.device)]], 1)
        places = truth.places[b, i]
        known = places.isfinite().all(1)
        b, i, j = b[known], i[known], j[known]
        width = features.coarse1.shape[2]
        pixel = torch.stack([j % width, j // width], 1) * STRIDE
        return b, i, j, fine_target(places[known], pixel, self.model.config.fine_window)

    def _draw(self, truth: Supervision, images: int, generator: torch.Generator) -> Tensor:
        """Rows of at most ``fine_matches`` true matches an image."""
        b = truth.b
        order = torch.randperm(len(b), generator=generator).to(b.device)
        order = order[torch.argsort(b[order], stable=True)]  # by image, shuffled within each
        counts = torch.bincount(b, minlength=images)
        place = torch.arange(len(b), device=b.device) - (counts.cumsum(0) - counts)[b[order]]
        return order[place < self.hparams["fine_matches"]]


def _random(count: int, wanted: int, generator: torch.Generator) -> Tensor:
    """``wanted`` numbers below ``count``, with repetition as published; none if there is nothing to draw from."""
    return torch.randint(count, (wanted,), generator=generator) if count else torch.zeros(0, dtype=torch.int64)
