"""quadtree fit, validate and test: the command line of Lightning, and what a run needs besides: checkpoints that no kill and no mistake can lose."""

from __future__ import annotations

import logging
import re
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import InputError, MissingPackageError
from ..extras import require
from .app import app, typer
from .recipes import check_nulls, check_recipes, one_line

_PASSED_ON: dict[str, Any] = {
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
}
# What Lightning says that no one who trains by this command needs to know.
_NOTICES = (
    "LightningCLI's args parameter",  # meant for scripts that parse twice
    ".*does not have many workers",  # a recipe says how many
    "Be aware that when using `ckpt_path`",
    "Checkpoint directory .* exists and is not empty",  # the run that goes on
    "The dirpath has changed",
    "The number of training batches",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    "Precision .* is not supported by the model summary",
    "Starting from v1.9.0, `tensorboardX` has been removed",
    "You're using the WeightAveraging callback, but loading a checkpoint outside",  # which the weights of a checkpoint are already
    "You're resuming from a checkpoint that ended before the epoch ended",  # our loaders go on with the very next sample
)


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
        check_recipes(arguments)
        with _quiet(), _sigterm():
            # Only a training leaves its configuration beside its logs, and one that is resumed there writes it again.
            kept = {"save_config_kwargs": {"overwrite": True}} if command == "fit" else {"save_config_callback": None}
            _cli(cli, command, arguments)(
                args=[command, *arguments],
                parser_kwargs={"exit_on_error": False},
                trainer_defaults={"enable_model_summary": False},
                **kept,
            )
    except jsonargparse.ArgumentError as error:
        raise InputError(f"{one_line(str(error))}; {_today(str(error)) or f'see quadtree {command} --help'}") from None
    except (InputError, OSError) as error:
        raise InputError(_plain(error)) from error
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # Lightning makes 1 of Ctrl-C
            raise KeyboardInterrupt from None
        raise


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, Lightning does not say what it has found out about the machine, nor what it does."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        for message in _NOTICES:
            warnings.filterwarnings("ignore", message)
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def _sigterm() -> Iterator[None]:
    """Inside, SIGTERM ends the process with 143, which Lightning would make 0; while batches are trained, `StopOnSignal` takes it over."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _today(mistake: str) -> str:
    """Where an option is found that a former version had; nothing for other mistakes."""
    from ..tasks.former import name_today

    task, option = (re.search(rf"{words} '[\w.]*?(\w+)'", mistake) for words in ("given class_path", "Option"))
    now = name_today(task[1], option[1]) if task and option else None
    return f"it is --model.{now} now" if now else ""


def _plain(error: Exception) -> str:
    """What is wrong, without the traceback of a DataLoader's worker."""
    lines = [line.strip() for line in str(error).splitlines()]
    if "Original Traceback (most recent call last):" in lines:
        lines = [re.sub(r"^[\w.]+: ", "", [line for line in lines if re.match(r"[\w.]+: ", line)][-1])]
    return " ".join(lines)


def _cli(cli: Any, command: str, arguments: list[str]) -> type:
    from ..tasks import run
    from ..tasks.checkpoints import EpochCount, WholeFiles, check_resumable, read_training
    from ..tasks.interrupt import StopOnSignal
    from ..tasks.report import Report

    exceptions = require("lightning.fabric.utilities.exceptions", "train")
    ModelCheckpoint = require("lightning.pytorch.callbacks", "train").ModelCheckpoint
    strategies = require("lightning.pytorch.strategies", "train")

    class CLI(cli.LightningCLI):
        writes = True  # checkpoints, by what the recipe says
        config: Any
        shapes: dict[str, tuple[int, ...]] | None = None  # of the checkpoint's weights

        @staticmethod
        def subcommands() -> dict[str, set[str]]:
            return {command: cli.LightningCLI.subcommands()[command]}

        def add_arguments_to_parser(self, parser: Any) -> None:
            if command == "fit":
                parser.add_argument(
                    "--resume",
                    choices=["auto"],
                    help="auto: go on from the newest checkpoint in the folder of the run; where there is none, begin.",
                )

        def parse_arguments(self, parser: Any, args: Any) -> None:
            super().parse_arguments(parser, args)
            run.check_trainer(self.config[command])

        def _parse_ckpt_path(self) -> None:
            """Lightning would take over the options of any task here; see `tasks.run.kept_options`."""

        def before_instantiate_classes(self) -> None:
            config = self.config[self.subcommand]
            for section in ("model", "data"):
                check_nulls(section, config.get(section))
            if command == "fit":
                folders, self.writes = run.checkpoint_folders(config)
                config.ckpt_path = run.checkpoint_to_resume(config, folders)
            elif config.ckpt_path is None:
                run.check_trained(config.model, command)
            path = config.ckpt_path
            if path is None or path in ("best", "last", "hpc") or Path(path).is_dir():
                return
            content = read_training(path)
            if command == "fit":
                check_resumable(content, path)
            self.shapes = {name: tuple(value.shape) for name, value in content["state_dict"].items()}
            asked = [found[1] for one in arguments if (found := re.match(r"--model\.(?:init_args\.)?([\w.]+)", one))]
            kept, line = run.kept_options(content.get("hyper_parameters", {}), config.model, asked, path)
            if line:
                typer.echo(f"quadtree: {line}", err=True)
            if kept:
                model = {"class_path": config.model.class_path, "dict_kwargs": kept}
                self.config = self.parser.parse_object({command: {"model": model}}, self.config)

        def instantiate_classes(self) -> None:
            try:
                super().instantiate_classes()
            except ValueError as error:  # the parser wraps what a task or its data says
                cause: BaseException | None = error
                while cause is not None and not isinstance(cause, (InputError, OSError, MissingPackageError)):
                    cause = cause.__cause__ or cause.__context__
                if cause is None:
                    raise
                raise cause from None

        def instantiate_trainer(self, **kwargs: Any) -> Any:
            if command == "fit":
                callbacks = self.trainer_defaults["callbacks"] = [EpochCount(), StopOnSignal(), Report()]
                if not self.writes:
                    root = self.config[command].trainer.default_root_dir
                    callbacks.append(
                        ModelCheckpoint(root, "last", enable_version_counter=False, save_on_train_epoch_end=True)
                    )
            try:
                trainer = super().instantiate_trainer(**kwargs)
            except (
                exceptions.MisconfigurationException,
                ValueError,
                TypeError,
                RuntimeError,
            ) as error:  # its options are all it knows yet
                raise InputError(f"--trainer: {error}") from None
            if isinstance(trainer.strategy, (strategies.SingleDeviceStrategy, strategies.DDPStrategy)):
                trainer.strategy.checkpoint_io = WholeFiles()
            return trainer

        def after_instantiate_classes(self) -> None:
            if self.shapes is not None:
                run.check_shapes(self.model, self.shapes, self.config[command].ckpt_path)

    return CLI
