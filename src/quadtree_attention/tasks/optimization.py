"""How all tasks learn: AdamW, which parameters decay or learn at a rate of their own, and how the learning rate goes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn

from ..errors import InputError, check_range
from ..models.classifier import level_weights

Schedule = Literal["cosine", "multistep", "polynomial"]
Decayed = Literal["matrices", "all_but_norms", "all"]


@dataclass(frozen=True)
class Optimization:
    """AdamW and its schedule. Each task has defaults of its own for these.

    Args:
        learning_rate: the highest.
        schedule: "cosine", down to the share ``end`` of it; "multistep": times ``decay`` when each of the epochs ``milestones`` begins;
            "polynomial": the share of steps that are left, to the power ``power``. Cosine and polynomial stay at the highest rate where the trainer
            does not know how many steps there are (``max_steps`` or ``max_epochs``).
        warmup_steps, warmup_epochs: over so many, added up, the rate rises linearly from the share ``warmup_start`` of what it would be.
        weight_decay, betas: of AdamW.
        decayed: what decays: "matrices" (and convolutions, but no biases, norms and level weights), "all_but_norms" or "all".
        head_rate: factor of the learning rate of the head, the part of the network with this name.
        level_rate: factor of that of the level weights of quadtree attention.
        canonical_batch: samples a step, over all devices and accumulated batches, for which ``learning_rate`` and ``warmup_steps`` are meant; of
            another number the rate is that many times as high and the warm-up as short. None: no such scaling.

    Raises:
        ValueError: the first number that makes no sense.
    """

    learning_rate: float = 1e-3
    schedule: Schedule = "cosine"
    warmup_steps: int = 0
    warmup_epochs: float = 0.0
    warmup_start: float = 0.001
    end: float = 0.0
    milestones: tuple[int, ...] = ()
    decay: float = 0.1
    power: float = 1.0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    decayed: Decayed = "matrices"
    head_rate: float = 1.0
    level_rate: float = 1.0
    canonical_batch: int | None = None

    def __post_init__(self) -> None:
        check_range("learning_rate", self.learning_rate, 0, 100, above=True)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"betas are {list(self.betas)}, expected two numbers from 0 to below 1")
        for name in ("warmup_steps", "warmup_epochs", "decay", "power", "weight_decay", "head_rate", "level_rate"):
            check_range(name, getattr(self, name), 0)
        for name in ("warmup_start", "end"):
            check_range(name, getattr(self, name), 0, 1)
        for name, kind in (("schedule", Schedule), ("decayed", Decayed)):
            if getattr(self, name) not in get_args(kind):
                raise InputError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(get_args(kind))}")
        if self.canonical_batch is not None:
            check_range("canonical_batch", self.canonical_batch, 1)

    def share(self, step: int, warmup: float, total: float, epoch_steps: float) -> float:
        """Share of the highest learning rate at a step.

        Args:
            step: of the optimizer, from 0.
            warmup, total, epoch_steps: steps of the warm-up, of the training and of an epoch; infinity where that is not known.
        """
        rise = self.warmup_start + (1 - self.warmup_start) * min(1.0, step / warmup) if warmup else 1.0
        gone = min(step / total, 1.0)
        if self.schedule == "cosine":
            return rise * (self.end + (1 - self.end) * 0.5 * (1 + math.cos(math.pi * gone)))
        if self.schedule == "polynomial":
            return rise * (1 - gone) ** self.power
        return rise * self.decay ** sum(step >= epoch * epoch_steps for epoch in self.milestones)


def configure(task: LightningModule, network: nn.Module, optimization: Optimization) -> OptimizerLRScheduler:
    """AdamW for the parameters of ``network`` in `parameter_groups`, and its schedule by step, as Lightning asks a task for them."""
    scaling = _scaling(task, optimization)
    groups = parameter_groups(network, optimization, optimization.learning_rate * scaling)
    optimizer = torch.optim.AdamW(groups, betas=(optimization.betas[0], optimization.betas[1]))

    steps = int(optimization.warmup_steps / scaling)

    def share(step: int) -> float:
        if (
            step == 0
        ):  # asked before the loaders are made; counting their batches then would keep them from being restored
            return optimization.warmup_start if steps or optimization.warmup_epochs else 1.0
        trainer = task.trainer
        epoch_steps = trainer.num_training_batches / trainer.accumulate_grad_batches
        epoch_steps = epoch_steps if math.isinf(epoch_steps) else math.ceil(epoch_steps)
        warmup = steps + (optimization.warmup_epochs * epoch_steps if optimization.warmup_epochs else 0)
        return optimization.share(step, warmup, trainer.estimated_stepping_batches, epoch_steps)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def parameter_groups(network: nn.Module, optimization: Optimization, learning_rate: float) -> list[dict[str, Any]]:
    """Parameters that learn, with their names, by learning rate and weight decay, as torch's optimizers take them.

    timm's `param_groups_weight_decay` has neither rates of parts nor the rule of norms alone, by which the segmenters were published.

    Raises:
        ValueError: a rate of a head that the network does not have.
    """
    levels = {id(parameter) for parameter in level_weights(network)}
    groups: dict[tuple[float, float], list[tuple[str, nn.Parameter]]] = {}
    has_head = False
    for name, parameter in network.named_parameters():
        head = name.startswith("head.")
        has_head |= head
        if not parameter.requires_grad:
            continue
        decays = {
            "matrices": parameter.dim() > 1,
            "all_but_norms": "norm" not in name,
            "all": True,
        }[optimization.decayed]
        rate = optimization.level_rate if id(parameter) in levels else optimization.head_rate if head else 1.0
        key = learning_rate * rate, optimization.weight_decay if decays else 0.0
        groups.setdefault(key, []).append((name, parameter))
    if optimization.head_rate != 1 and not has_head:
        raise InputError(f"head_rate is {optimization.head_rate}, but this network has no part head; leave it out")
    return [{"params": named, "lr": rate, "weight_decay": decay} for (rate, decay), named in groups.items()]


def _scaling(task: LightningModule, optimization: Optimization) -> float:
    """Samples a step over those that the learning rate is meant for."""
    if optimization.canonical_batch is None:
        return 1.0
    data = getattr(task.trainer, "datamodule", None)
    batch = getattr(data, "batch_size", getattr(data, "hparams", {}).get("batch_size"))
    if batch is None:
        raise InputError("canonical_batch needs a data module with a batch_size; give one, or set it to null")
    samples = batch * task.trainer.world_size * task.trainer.accumulate_grad_batches
    return samples / optimization.canonical_batch
