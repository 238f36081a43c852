"""Ctrl-C and SIGTERM end a training with a checkpoint."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal(Callback):
    """On SIGINT (Ctrl-C) or SIGTERM the batch at hand is finished and a checkpoint is written; then the process exits with 128 + the signal's number.

    A second signal ends it at once. A validation is broken off: its checkpoint is written before it begins, since weights may be exchanged for
    their average while it runs. The checkpoint is last.ckpt in the folder of the first ModelCheckpoint. With several processes, all stop where
    one is asked to.
    """

    def __init__(self) -> None:
        self._asked: int | None = None
        self._saved = False
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for signals, in place of what Lightning does on SIGTERM."""
        self._asked = None
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._ask) for number in SIGNALS}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Stop here, if asked to."""
        if self._agreed(trainer):
            self._save(trainer)
            self._stop(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what a validation that is broken off leaves."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Stop here, if asked to."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self._agreed(trainer):
            self._stop(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """No longer wait for signals."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """As `on_train_end`."""
        self.on_train_end(trainer, pl_module)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked is not None:
            raise SystemExit(128 + number)
        self._asked = number
        print("\nquadtree: stopping after this batch; a second signal stops at once", file=sys.stderr)

    def _agreed(self, trainer: Trainer) -> bool:
        asked = self._asked is not None
        if trainer.world_size > 1 and trainer.strategy.reduce_boolean_decision(asked, all=False):
            self._asked = self._asked or signal.SIGTERM
            return True
        return asked

    def _save(self, trainer: Trainer) -> None:
        path = last_checkpoint(trainer)
        if path is not None:
            trainer.save_checkpoint(path)

    def _stop(self, trainer: Trainer) -> None:
        path = last_checkpoint(trainer)
        if trainer.is_global_zero:
            kept = (
                f"go on from {path} with --resume auto"
                if path
                else "no checkpoint was written, since none was asked for"
            )
            print(f"\nquadtree: stopped; {kept}", file=sys.stderr)
        raise SystemExit(128 + int(self._asked or signal.SIGTERM))


def last_checkpoint(trainer: Trainer) -> Path | None:
    """Where the newest state of a training lies: last.ckpt in the folder of the first ModelCheckpoint; None if there is none."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath and not getattr(trainer, "fast_dev_run", False):
            return Path(callback.dirpath) / "last.ckpt"
    return None
