"""A quiet trainer on the CPU, and the warnings that are not our concern, for the tests of all tasks."""

import os
from collections.abc import Callable
from dataclasses import fields, replace
from inspect import signature
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import yaml
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from PIL import Image

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


def made(kind: Callable[..., Any], *arguments: Any, **changes: Any) -> Any:
    """A task; changes are its arguments, and fields of the defaults of its ``optimization`` and its ``loss``."""
    for name in ("optimization", "loss"):
        if name in signature(kind).parameters:
            default = signature(kind).parameters[name].default
            mine = {field.name: changes.pop(field.name) for field in fields(default) if field.name in changes}
            changes[name] = replace(default, **mine)
    return kind(*arguments, **changes)


def rates(task: pl.LightningModule, steps: Any, **known: Any) -> list[float]:
    """Shares of the highest learning rate at these steps, where the trainer knows this of its length."""
    default = {"accumulate_grad_batches": 1, "num_training_batches": 100, "estimated_stepping_batches": float("inf")}
    task._trainer = type("Trainer", (), {**default, **known})  # type: ignore[assignment]  # all that is asked of it
    (share,) = task.configure_optimizers()["lr_scheduler"]["scheduler"].lr_lambdas[:1]  # type: ignore[index, call-overload]
    return [share(step) for step in steps]


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


class SendSignal(Callback):
    """Sends this process a signal after batch ``at`` of the training, or after the first of the validation in epoch ``at``."""

    def __init__(self, number: int, at: int, validating: bool = False) -> None:
        self.number, self.at, self.validating = number, at, validating

    def on_train_batch_start(self, trainer, *args) -> None:
        if not self.validating and trainer.global_step == self.at:
            os.kill(os.getpid(), self.number)

    def on_validation_batch_start(self, trainer, *args) -> None:
        if self.validating and trainer.current_epoch == self.at:
            os.kill(os.getpid(), self.number)


def write_squares(root: Path) -> Path:
    """Folders train, validation and test of bright and dark squares."""
    for split, count in (("train", 8), ("validation", 4), ("test", 2)):
        for label, name in enumerate(("bright", "dark")):
            (root / split / name).mkdir(parents=True)
            for n in range(count):
                pixels = np.random.default_rng([n, label]).integers(0, 128, (36, 40, 3)) + 127 * (1 - label)
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{n}.png")
    return root


def write_recipe(path: Path, root: Path, **trainer: Any) -> Path:
    """A training of a tiny classifier on such folders, 4 steps an epoch, that has chance in it."""
    sides = {
        "depths": [1, 1, 1, 1],
        "embed_dims": [8, 8, 16, 16],
        "num_heads": [1, 1, 2, 2],
        "mlp_ratios": [2, 2, 2, 2],
    }
    model = {
        "preset": "pvt_v2_b0",
        "num_classes": 2,
        "options": {**sides, "drop_path_rate": 0.2},
        "optimization": {"learning_rate": 3e-3, "warmup_epochs": 1},
    }
    data = {"root": str(root), "input_size": [3, 32, 32], "batch_size": 4, "num_workers": 0}
    running = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 3,
        "logger": False,
        "num_sanity_val_steps": 0,
        "enable_progress_bar": False,
    }
    content = {
        "seed_everything": 0,
        "model": {"class_path": "quadtree_attention.tasks.classification.ClassificationTask", "init_args": model},
        "data": {
            "class_path": "quadtree_attention.data.recognition.classification.ClassificationData",
            "init_args": data,
        },
        "trainer": {**running, "default_root_dir": str(path.parent / "run"), **trainer},
    }
    path.write_text(yaml.safe_dump(content))
    return path
