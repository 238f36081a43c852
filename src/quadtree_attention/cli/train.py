"""quadtree fit, validate and test: the command line of Lightning."""

from __future__ import annotations

import warnings
from typing import Any

from ..extras import require
from .app import UsageError, app, typer

_PASSED_ON: dict[str, Any] = {
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
}


@app.command(**_PASSED_ON)
def fit(context: typer.Context) -> None:
    """Train: --config recipes/NAME.yaml [overrides]. Lightning's own command line, see quadtree fit --help."""
    _lightning("fit", context.args)


@app.command(**_PASSED_ON)
def validate(context: typer.Context) -> None:
    """Validate a checkpoint: --config FILE.yaml --ckpt_path FILE.ckpt. Lightning's own command line."""
    _lightning("validate", context.args)


@app.command(**_PASSED_ON)
def test(context: typer.Context) -> None:
    """Test a checkpoint: --config FILE.yaml --ckpt_path FILE.ckpt. Lightning's own command line."""
    _lightning("test", context.args)


def _lightning(command: str, arguments: list[str]) -> None:
    cli = require("lightning.pytorch.cli", "train")
    jsonargparse = require("jsonargparse", "train")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "LightningCLI's args parameter")  # meant for scripts that parse twice
            cli.LightningCLI(
                args=[command, *arguments],
                parser_kwargs={"exit_on_error": False},
                save_config_kwargs={"overwrite": True},  # else a run without a logger could not be resumed
            )
    except jsonargparse.ArgumentError as error:
        raise UsageError(f"{error}; see quadtree {command} --help") from None
