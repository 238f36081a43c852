"""What tasks share whose network tells classes apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import InputError
from ..weights.files import described
from .base import Task


class ClassesTask(Task):
    """A task whose data have the classes of ``config.labels``, by number: names come from the data, and must be those of the checkpoint."""

    trained: list[str] | None = None  # classes of the checkpoint

    def class_names(self) -> list[str] | None:
        """Names of the classes of the data; None where there are no data that know."""
        asked = getattr(getattr(self.trainer, "datamodule", None), "class_names", None)
        return asked() if asked is not None else None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember which classes it knows."""
        super().on_load_checkpoint(checkpoint)
        _, config = described(checkpoint, Path("the checkpoint"))
        self.trained = None if config is None else config.get("labels")

    def setup(self, stage: str) -> None:
        """Raises a ValueError if the data have another number of classes."""
        names, wanted = self.class_names(), len(self.config.labels)
        if names is None:
            return
        if len(names) != wanted:
            raise InputError(
                f"the data has {len(names)} classes, expected num_classes, {wanted}; set --model.num_classes"
            )

    def on_train_start(self) -> None:
        """Raises a ValueError if the data have other classes than the checkpoint, if there is one."""
        names = self.class_names()
        if names is not None:
            check_classes(names, self.trained)

    on_validation_start = on_test_start = on_train_start

    def check_labels(self, labels: Tensor) -> None:
        """Raises a ValueError if a label is no number of a class."""
        wanted = len(self.config.labels)
        if labels.numel() and int(labels.max()) >= wanted:
            raise InputError(
                f"the data has a label {int(labels.max())}, expected labels below num_classes, {wanted}; set --model.num_classes"
            )


def numbered(num_classes: int) -> list[str]:
    """Names of classes that are not known yet: their numbers.

    Raises:
        ValueError: fewer than two classes.
    """
    if num_classes < 2:
        raise InputError(f"num_classes is {num_classes}, expected at least 2")
    return [str(n) for n in range(num_classes)]


def check_classes(names: Sequence[str], trained: Sequence[str] | None) -> None:
    """Make sure that the classes of the data are those of a checkpoint, in the same order; one whose classes have no names but numbers fits all.

    Raises:
        ValueError: the first class that differs, and what to do.
    """
    if trained is None or list(trained) in ([str(n) for n in range(len(trained))], list(names)):
        return
    if len(names) != len(trained):
        raise InputError(
            f"the data has {len(names)} classes, but the checkpoint was trained with {len(trained)}; expected the same"
        )
    n = next(n for n, (here, there) in enumerate(zip(names, trained, strict=True)) if here != there)
    raise InputError(
        f"class {n} of the data is {names[n]!r}, but {trained[n]!r} in the checkpoint; expected the classes that it was trained with, in their order"
    )
