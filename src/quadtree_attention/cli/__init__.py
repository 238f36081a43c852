"""The command `quadtree`: one file a command.

Results go to stdout, all else to stderr; mistakes are raised and become one line in `__main__`. Imports stand in the functions: they are most
of what a short command costs.
"""

from __future__ import annotations

# They register their commands, in the order of quadtree --help.
# ruff: isort: off
from ..errors import InputError
from . import match, match_folder, stereo, classify, detect, segment, models, convert, evaluate, bench, train  # noqa: F401
from .app import app
# ruff: isort: on

__all__ = ["app", "run"]


def run(arguments: list[str]) -> int:
    """Run one command, and return its exit status: what its function returns, or 0.

    Raises:
        InputError, OSError, MissingPackageError: a user's mistake, in one line.
    """
    try:
        status = app(args=arguments, prog_name="quadtree", standalone_mode=False)
    except Exception as error:
        if hasattr(error, "format_message"):  # the parser's, whichever version of it typer brings
            raise InputError(f"{error.format_message().rstrip('.')}; see quadtree --help") from None
        raise
    if status == 130:  # how the parser reports an interrupt
        raise KeyboardInterrupt
    return status or 0
