"""A quiet trainer on the CPU, and the warnings that are not our concern, for the tests of all tasks."""

from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

# What Lightning says of torch, of jsonargparse, and of how these tests use it; on machines with many cores, that there could be more workers.
LIGHTNING = pytest.mark.filterwarnings(
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated",
    r"ignore:(?s).*(deprecated in v4\.|JsonargparseDeprecationWarning)",
    "ignore:.*does not have many workers",
    "ignore:Be aware that when using `ckpt_path`",
    "ignore:The dirpath has changed",
    "ignore:Checkpoint directory .* exists and is not empty",
    "ignore:Precision bf16-mixed is not supported by the model summary",
)


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
