"""quadtree fit, validate and test: the command line of Lightning."""

from __future__ import annotations

import pickle
import re
import warnings
from typing import Any

from ..errors import InputError
from ..extras import require
from .app import app, typer

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
            # Only a training leaves its configuration beside its logs, and one that is resumed there writes it again.
            kept = {"save_config_kwargs": {"overwrite": True}} if command == "fit" else {"save_config_callback": None}
            _cli(cli)(args=[command, *arguments], parser_kwargs={"exit_on_error": False}, **kept)
    except jsonargparse.ArgumentError as error:
        raise InputError(f"{_plain(error)}; see quadtree {command} --help") from None
    except pickle.UnpicklingError:
        raise InputError("--ckpt_path is not a checkpoint that training wrote, or is damaged") from None
    except (InputError, OSError) as error:
        raise InputError(_plain(error)) from error


def _plain(error: Exception) -> str:
    """What is wrong, without the types and values that jsonargparse lists, and without the traceback of a DataLoader's worker."""
    lines = [line.strip().removeprefix("- ") for line in str(error).splitlines()]
    if "Original Traceback (most recent call last):" in lines:
        lines = [re.sub(r"^[\w.]+: ", "", [line for line in lines if re.match(r"[\w.]+: ", line)][-1])]
    listed: tuple[str, ...] = (
        "Does not validate",
        "Subtypes:",
        "Errors:",
        "Expected a <class 'NoneType'>",
        "Problem with given class_path",
    )
    listed += ("Given value type:", "Given value: Namespace(", "Given value: NestedArg(")
    return " ".join(line for line in lines if not line.startswith(listed))


def _cli(cli: Any) -> type:
    class CLI(cli.LightningCLI):
        def before_instantiate_classes(self) -> None:
            """Checkpoints lie in the folder of the run, ``trainer.default_root_dir``, where a recipe names no other."""
            trainer = self.config[self.subcommand].trainer
            callbacks = trainer.callbacks or []
            for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
                if callback.class_path.endswith(".ModelCheckpoint") and callback.init_args.dirpath is None:
                    callback.init_args.dirpath = trainer.default_root_dir

    return CLI
