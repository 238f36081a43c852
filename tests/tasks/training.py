"""A quiet trainer on the CPU, for the tests of all tasks."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, ModelCheckpoint


def trainer(folder, *callbacks: Callback, **options: Any) -> pl.Trainer:
    """One that works in ``folder``, and writes checkpoints only where a callback does; with max_steps, it trains as many epochs as they take."""
    if "max_steps" in options:
        options.setdefault("max_epochs", -1)
    return pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        **options,
    )
