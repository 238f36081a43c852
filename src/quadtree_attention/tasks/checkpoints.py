"""Checkpoints of trainings: written whole or not at all, read without running what is pickled in them, and found in the folder of a run."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from ..errors import InputError

# What Lightning cannot go on without.
_TRAINING = {
    "loops": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "callbacks": dict,
    "epoch": int,
    "global_step": int,
}


class WholeFiles(TorchCheckpointIO):
    """Lightning's own reading and writing, but a file is written beside the old one and takes its name when it is on the disk.

    Lightning writes into the folder for temporary files, and copies where that is on another file system: a kill in the copy loses both files.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a file; elsewhere than in the file system as Lightning does."""
        if "://" in str(path) or storage_options is not None:
            return super().save_checkpoint(checkpoint, path, storage_options)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()  # a full disk is then an OSError
        torch.save(checkpoint, content)
        part = path.with_name(f".{path.name}.part")  # always the same, so that no kill leaves more than one
        try:
            with part.open("wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def load_checkpoint(
        self, path: str | Path, map_location: Callable | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a file with `read_training`, unless its pickle is to be trusted; elsewhere than in the file system as Lightning does."""
        if "://" in str(path) or weights_only is False:
            return super().load_checkpoint(path, map_location, weights_only)
        return read_training(path)


class EpochCount(Callback):
    """Mends Lightning's count of epochs where a training goes on from the last batch of one.

    The next epoch has begun then, but is not counted as such. A checkpoint of it would tell the training that goes on from it that one batch more
    is left, which shows in a run that is cut off twice.
    """

    def on_train_batch_start(self, trainer: Trainer, *arguments: Any) -> None:
        """Whenever a batch begins, one epoch has begun that is not at its end."""
        progress = trainer.fit_loop.epoch_progress
        if progress.current.ready == progress.current.completed:
            progress.increment_ready()
            progress.increment_started()


def read_training(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint that a training wrote, on the CPU; no code that is pickled in it is run.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a checkpoint, or a damaged one.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, expected a checkpoint that a training wrote")
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not look at the checksums
            broken = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError, OverflowError) as error:
        raise _damaged(path, error) from None
    if broken is not None:
        raise _damaged(path, f"wrong checksum of {broken}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no plain data fails in many ways
        raise _damaged(path, error) from None
    weights = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise _damaged(path, "no state_dict")
    if "pytorch-lightning_version" not in content:
        raise InputError(
            f"{path} has weights alone, expected a checkpoint that a training wrote; name it by --model.init_from"
        )
    return content


def check_resumable(content: dict[str, Any], path: str | Path) -> None:
    """Make sure that a training can go on from a checkpoint.

    Raises:
        ValueError: it holds weights, but not the state of the training.
    """
    for name, kind in _TRAINING.items():
        if not isinstance(content.get(name), kind):
            raise InputError(
                f"{path} cannot be gone on with: it has no {name}, the state of its training; begin a new run from its weights with --model.init_from"
            )


def newest_checkpoint(folders: Iterable[str | Path]) -> Path | None:
    """The checkpoint in any of the folders that was written last; None if there is none."""
    found = [path for folder in folders for path in Path(folder).glob("*.ckpt") if not path.name.startswith(".")]
    return max(found, key=lambda path: (path.stat().st_mtime_ns, path.name), default=None)


def _damaged(path: Path, reason: object) -> InputError:
    words = str(reason).strip().split("\n")[0].removeprefix("PytorchStreamReader failed ")
    if "weights_only" in words or "Weights only" in words:
        words = "it holds other objects than numbers, names and tensors"
    return InputError(
        f"{path} is not a checkpoint that training wrote, or is damaged ({words[:200] or type(reason).__name__})"
    )
