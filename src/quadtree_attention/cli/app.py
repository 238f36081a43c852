"""What all commands share."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Annotated

from .. import __version__
from ..errors import InputError
from ..extras import require
from ..files import check_output

typer = require("typer", "vision")

DEVICE = Annotated[
    str | None,
    typer.Option("--device", help="Such as cpu or cuda; by default a CUDA GPU if there is one.", show_default=False),
]

TOPK = Annotated[
    str | None,
    typer.Option(
        metavar="K,K",
        help="Keys that quadtree attention keeps, coarse to fine; by default the model's own, such as 32,16 of indoor, 16,8 of outdoor.",
        show_default=False,
    ),
]

app = typer.Typer(
    help="Match and classify images, find what is in them, and see depth, with quadtree attention.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        print(f"quadtree-attention {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,  # type: ignore[name-defined]  # typer is imported by require
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback of every error.")] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def check_outputs(*outputs: tuple[str | None, Collection[str]], sources: Iterable[str]) -> None:
    """Make sure that the files asked for can be written, each a path, or None, and the suffixes it may have; none may be one of the ``sources``.

    Raises:
        ValueError, OSError: as `check_output`.
    """
    paths = [check_output(path, suffixes) for path, suffixes in outputs if path is not None]
    for source in sources:
        if any(path.exists() and Path(source).exists() and path.samefile(source) for path in paths):
            raise InputError(f"{source} would be overwritten by the result, expected another name for it")


def numbers(text: str | None, option: str) -> tuple[int, ...] | None:
    """Whole numbers above 0 with commas between them, or None.

    Raises:
        ValueError: anything else.
    """
    if text is None:
        return None
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
        raise InputError(f"{option} is {text!r}, expected whole numbers above 0 with commas, such as 32,16")
    return tuple(int(word) for word in words)
