"""What a training says of itself: one line at its start, and its results at the end."""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ..table import Table
from .interrupt import last_checkpoint

# Of these the lower is the better one; of all others, such as accuracies and areas under curves, the higher.
_LOWER = ("loss", "coarse", "fine", "raw", "response", "disparity", "occlusion", "epe", "bad", "d1")


class Report(Callback):
    """The last and the best figures of all validations, those before a resumption too; where the checkpoint is, and what makes weights of it."""

    def __init__(self) -> None:
        self._best: dict[str, tuple[float, int]] = {}
        self._last: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """The figures, for the checkpoint."""
        return {"best": {name: list(pair) for name, pair in self._best.items()}, "last": dict(self._last)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Those of the checkpoint."""
        self._best = {name: (value, step) for name, (value, step) in state_dict.get("best", {}).items()}
        self._last = dict(state_dict.get("last", {}))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what is trained, on what, and where checkpoints go."""
        if trainer.is_global_zero:
            count = sum(p.numel() for p in pl_module.parameters() if p.requires_grad) / 1e6
            path = last_checkpoint(trainer)
            kept = f"checkpoints in {path.parent}" if path else "no checkpoints"
            device = (
                f"{trainer.world_size} x {pl_module.device.type}" if trainer.world_size > 1 else f"{pl_module.device}"
            )
            print(
                f"quadtree: {type(pl_module).__name__}, {count:.2f} M weights to learn, on {device}; {kept}",
                file=sys.stderr,
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the figures of a validation."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        # One for each class would be a long table.
        found = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        self._last = {name: value for name, value in found.items() if name.count("/") == 1}
        for name, value in self._last.items():
            best = self._best.get(name)
            if best is None or (value < best[0] if name.split("/")[1].startswith(_LOWER) else value > best[0]):
                self._best[name] = value, trainer.global_step

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the figures, and what to do next."""
        if not trainer.is_global_zero:
            return
        if self._last:
            rows = [
                {
                    "validation": name.removeprefix("val/"),
                    "last": f"{value:.4g}",
                    "best": f"{self._best[name][0]:.4g}",
                    "at step": self._best[name][1],
                }
                for name, value in self._last.items()
            ]
            print(Table(rows).text())
        path = last_checkpoint(trainer)
        if path is not None and path.is_file():
            print(
                f"quadtree: done after {trainer.global_step} steps; the checkpoint is {path}; next: quadtree convert {path} NAME.safetensors --half",
                file=sys.stderr,
            )
