"""What tasks with classes share."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InputError


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
