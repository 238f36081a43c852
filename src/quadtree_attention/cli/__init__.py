"""The command `quadtree`: one file per command.

Results go to stdout, everything else to stderr. Mistakes raise errors, which `__main__` turns into one line. Functions import what they need
themselves, because imports take most of the time of a short command.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

# They register their commands, in the order of quadtree --help.
# ruff: isort: off
from ..errors import InputError
from . import match, match_folder, attention, stereo, rectify, classify, detect, segment, models, convert  # noqa: F401
from . import evaluate, bench, train, serve  # noqa: F401
from .app import app, note
# ruff: isort: on

__all__ = ["app", "run"]


def run(arguments: list[str]) -> int:
    """Run one command, and return its exit status: what its function returns, or 0.

    Raises:
        InputError, OSError, MissingPackageError: a user's mistake, in one line.
    """
    try:
        with warnings.catch_warnings(), _notes(quiet=bool({"-q", "--quiet"} & set(arguments))):
            status = app(args=arguments, prog_name="quadtree", standalone_mode=False)
    except Exception as error:
        if hasattr(error, "format_message"):  # from the command-line parser, in any version that typer brings
            command = getattr(getattr(error, "ctx", None), "command_path", "quadtree")
            raise InputError(f"{error.format_message().rstrip('.')}; see {command} --help") from None
        if type(error).__name__ == "Abort":  # some versions report an interrupt like this, others by the status
            raise KeyboardInterrupt from None
        raise
    except SystemExit as end:  # raised for a BrokenPipeError
        if isinstance(end.__context__, BrokenPipeError):
            raise end.__context__ from None
        raise
    if status == 130:
        raise KeyboardInterrupt
    return status or 0


@contextmanager
def _notes(quiet: bool) -> Iterator[None]:
    """Show warnings of this package as notes; with ``quiet``, neither them nor what it logs, and no progress of downloads."""
    action: Literal["ignore", "default"] = "ignore" if quiet else "default"
    warnings.filterwarnings(action, category=UserWarning, module="quadtree_attention")
    _show_as_notes()
    logger = logging.getLogger("quadtree_attention")
    before = logger.level
    if quiet:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _show_as_notes() -> None:
    """Show warnings of this package as notes, until the warning filters are restored."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], filename: str, *rest: Any, **named: Any) -> None:
        if issubclass(category, UserWarning) and Path(filename).is_relative_to(Path(__file__).parents[1]):
            note(str(message))
        else:
            usual(message, category, filename, *rest, **named)

    warnings.showwarning = show  # type: ignore[assignment]  # it takes what the usual one takes
