"""What the five tasks share: a network from its configuration, its optimisation, and what a checkpoint says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass, replace
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn

from ..data.loading import processes
from ..errors import InputError
from ..weights.files import ENTRY, description
from ..weights.kinds import kind_of
from ..weights.loading import initialize
from .former import translated_optimizer
from .optimization import Optimization, configure, parameter_groups

Config = TypeVar("Config")


class Task(LightningModule):
    """A network, how it learns, and what its checkpoints say; a subclass has the loss and the metrics, in Lightning's steps.

    Args:
        config: of the network, of a class in `weights.kinds`.
        init_from: start from these weights (a name or a file, see `quadtree models`) instead of random ones.
        optimization: AdamW and its schedule.
        channels_last: memory layout of the images and convolutions.

    Raises:
        ValueError: weights that do not fit.
    """

    model: nn.Module

    def __init__(
        self, config: Any, init_from: str | None, optimization: Optimization, channels_last: bool = False
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["config"])
        # Plain data alone, so that a checkpoint can be read without running what is pickled in it.
        plain = {
            name: asdict(one) for name, one in self.hparams.items() if is_dataclass(one) and not isinstance(one, type)
        }
        self.save_hyperparameters({**self.hparams, **plain})
        self.config = config
        self.optimization = of_class(Optimization, optimization)
        self.model = self.network(config)
        if init_from is not None:
            initialize(self.model, kind_of(config).name, init_from)
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model.to(memory_format=self.layout)

    def network(self, config: Any) -> nn.Module:
        """A network of this configuration, with random weights."""
        return kind_of(config).network(config)

    @property
    def stage(self) -> str:
        """What the names of metrics begin with."""
        return "test" if self.trainer.testing else "val"

    def chance(self, index: int, seed: int = 0) -> tuple[int, int, int, int]:
        """What all draws in batch ``index`` depend on, and on nothing else, so that a resumed training repeats them."""
        return seed, self.current_epoch, index, processes()[1]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, with the learning rate of ``optimization``."""
        return configure(self, self.model, self.optimization)

    def test_step(self, batch: Any, index: int) -> None:
        """As `validation_step`."""
        self.validation_step(batch, index)

    def on_test_epoch_end(self) -> None:
        """As `on_validation_epoch_end`."""
        self.on_validation_epoch_end()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """With the configuration of its network a checkpoint is all that prediction and `quadtree convert` need."""
        checkpoint[ENTRY] = description(self.config)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the state of the optimizer in the order of today, where an earlier version wrote it."""
        groups = parameter_groups(self.model, self.optimization, self.optimization.learning_rate)
        translated_optimizer(checkpoint, type(self).__name__, self.model, groups)


def changed(config: Config, options: Mapping[str, Any] | None) -> Config:
    """``config``, a dataclass, with other options.

    Raises:
        ValueError: an option that it does not have, or values that do not go together.
    """
    try:
        return replace(config, **options or {})  # type: ignore[type-var]  # a dataclass
    except TypeError as error:
        name = type(config).__name__
        backbone = "; those of the backbone stand in options.options" if hasattr(config, "backbone") else ""
        raise InputError(f"options do not fit the model: {error}; see {name} for what there is{backbone}") from None


def of_class(kind: type[Config], value: Any) -> Config:
    """``value``, or what it says where it is plain data, as checkpoints have it."""
    return kind(**value) if isinstance(value, Mapping) else value


def preset_of(presets: Mapping[str, Config], name: str) -> Config:
    """The configuration of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in presets:
        raise InputError(f"preset is {name!r}, expected one of {', '.join(presets)}")
    return presets[name]
