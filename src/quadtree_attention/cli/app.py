"""Shared by all commands: the typer app, options, notes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

from .. import __version__
from ..errors import InputError
from ..extras import require

typer = require("typer", "vision")

DEVICE = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="Device to run on: cpu, cuda, ... Default: a CUDA GPU if there is one, else the CPU.",
        show_default=False,
    ),
]

PRECISION = Annotated[
    str,
    typer.Option(
        help="float32 or bfloat16 for the convolutions, or auto: bfloat16 on processors that multiply it (AMX, AVX512-BF16)."
    ),
]

TOPK = Annotated[
    str | None,
    typer.Option(
        metavar="K,K",
        help="Number of keys that quadtree attention keeps at each level, coarse to fine. Default: the model's own, such as 32,16 for indoor.",
        show_default=False,
    ),
]

OVERWRITE = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="Replace existing files even if quadtree did not write them. Inputs are never replaced."
    ),
]

QUIET = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress and no notes on stderr.")]

app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Match images, estimate depth, classify, detect and segment, with quadtree attention.",
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
        bool, typer.Option("--version", "-v", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback of every error.")] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def note(text: str, quiet: bool = False) -> None:
    """Print a note to stderr, in one line."""
    if not quiet:
        print(f"quadtree: {' '.join(text.split())}", file=sys.stderr)


def note_default(name: str, labels: Sequence[str], model: str, quiet: bool) -> None:
    """Print a note that the default model knows only a few classes; nothing if the user chose another ``model``."""
    if model == name:
        known = f"{', '.join(labels[:12])}{', ...' * (len(labels) > 12)}"
        note(f"{name}, the default, knows {known} and nothing else; for others see quadtree models and --model", quiet)


def numbers(text: str | None, option: str) -> tuple[int, ...] | None:
    """Parse whole numbers above 0, separated by commas; None stays None.

    Raises:
        ValueError: anything else.
    """
    if text is None:
        return None
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
        raise InputError(f"{option} is {text!r}, expected whole numbers above 0 with commas, such as 32,16")
    return tuple(int(word) for word in words)
