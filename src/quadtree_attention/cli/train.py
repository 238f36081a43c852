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

from ..errors import InputError, MissingPackageError, check_range
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
_WEIGHTS = ("init_from", "weights")  # arguments of tasks that name them


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
        raise InputError(f"{one_line(str(error))}; see quadtree {command} --help") from None
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


def _plain(error: Exception) -> str:
    """What is wrong, without the traceback of a DataLoader's worker."""
    lines = [line.strip() for line in str(error).splitlines()]
    if "Original Traceback (most recent call last):" in lines:
        lines = [re.sub(r"^[\w.]+: ", "", [line for line in lines if re.match(r"[\w.]+: ", line)][-1])]
    return " ".join(lines)


def _cli(cli: Any, command: str, arguments: list[str]) -> type:
    from ..tasks.checkpoints import EpochCount, WholeFiles, check_resumable, newest_checkpoint, read_training
    from ..tasks.interrupt import StopOnSignal
    from ..tasks.report import Report

    exceptions = require("lightning.fabric.utilities.exceptions", "train")
    ModelCheckpoint = require("lightning.pytorch.callbacks", "train").ModelCheckpoint
    environments = require("lightning.fabric.plugins.environments", "train")
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
            _check_trainer(self.config[command])

        def _parse_ckpt_path(self) -> None:
            """Lightning would take over the arguments of any task here; see `_take_over`."""

        def before_instantiate_classes(self) -> None:
            config = self.config[self.subcommand]
            for section in ("model", "data"):
                check_nulls(section, config.get(section))
            if command == "fit":
                self._resume(config, self._folders(config))
            path = config.ckpt_path
            if path is None and command != "fit":
                _check_weights(config.model, command)
            if path is not None and path not in ("best", "last", "hpc") and not Path(path).is_dir():
                content = read_training(path)
                if command == "fit":
                    check_resumable(content, path)
                self.shapes = {name: tuple(value.shape) for name, value in content["state_dict"].items()}
                self._take_over(content.get("hyper_parameters", {}), config.model, path)

        def _folders(self, config: Any) -> list[str]:
            """Where checkpoints go: in the folder of the run, ``trainer.default_root_dir``, where a recipe names no other."""
            root = config.trainer.default_root_dir
            callbacks = config.trainer.callbacks or []
            callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
            writers = [one.init_args for one in callbacks if one.class_path.endswith(".ModelCheckpoint")]
            self.writes = bool(writers) or not root or config.trainer.enable_checkpointing is False
            for writer in writers:
                writer.dirpath = writer.dirpath or root
            return [*{writer.dirpath: None for writer in writers if writer.dirpath}, *([root] if root else [])]

        def _resume(self, config: Any, folders: list[str]) -> None:
            """Begin only where no checkpoint would be overwritten, or go on from it."""
            if config.trainer.fast_dev_run or config.trainer.enable_checkpointing is False:
                return
            if config.resume and config.ckpt_path:
                raise InputError(
                    f"--resume auto and --ckpt_path {config.ckpt_path} exclude each other, expected one of them"
                )
            newest = newest_checkpoint(folders)
            if config.resume:
                if not folders:
                    raise InputError("--resume auto needs the folder of the run, set --trainer.default_root_dir")
                config.ckpt_path = str(newest) if newest else None
                return
            if newest is None or (
                environments.SLURMEnvironment.detect() and any([*Path(one).glob("hpc_ckpt_*.ckpt")] for one in folders)
            ):
                return  # Lightning goes on by itself where SLURM begins a job anew
            given = config.ckpt_path
            if given is None or (
                Path(given).is_file() and Path(given).resolve().parent not in [Path(one).resolve() for one in folders]
            ):
                raise InputError(
                    f"{newest} is the checkpoint of an earlier run, which this one would overwrite; go on with it by --resume auto, "
                    "or begin in another folder with --trainer.default_root_dir FOLDER"
                )

        def _take_over(self, saved: dict[str, Any], model: Any, path: str) -> None:
            """The arguments of the checkpoint's task; what was asked for on the command line must agree with them."""
            saved = {name: value for name, value in saved.items() if name != "_instantiator"}
            task = saved.pop("_class_path", model.class_path)
            if _short(task) != _short(model.class_path):  # a module may have moved since
                hint = "; name it by --model.weights, without --ckpt_path" if "weights" in model.init_args else ""
                raise InputError(
                    f"{path} is a checkpoint of {_short(task)}, expected one of {_short(model.class_path)}{hint}"
                )
            wanted = _plain_values(model.init_args)
            other = {
                name: value for name, value in _plain_values(saved).items() if name in wanted and wanted[name] != value
            }
            for name, value in other.items():
                if any(re.match(rf"--model\.(init_args\.)?{name}\b", argument) for argument in arguments):
                    raise InputError(
                        f"{name} is {value} in {path} and stays so, but --model.{name} {wanted[name]} was asked for; leave it out, "
                        "or begin a new run from these weights with --model.init_from"
                    )
            if other:
                listed = ", ".join(f"{name} {value} (not {wanted[name]})" for name, value in other.items())
                _say(f"{path} has settings of its own, which are kept: {listed}")
            if saved:
                hparams = {"model": {"class_path": model.class_path, "dict_kwargs": saved}}
                self.config = self.parser.parse_object({command: hparams}, self.config)

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
            if self.shapes is None:
                return
            path = self.config[command].ckpt_path
            for name, value in self.model.state_dict().items():
                if self.shapes.get(name) != tuple(value.shape):
                    raise InputError(
                        f"{path} does not fit the model: {name} has shape {self.shapes.get(name)}, expected {tuple(value.shape)}"
                    )

    return CLI


def _check_trainer(config: Any) -> None:
    """Make sure of what Lightning itself finds out by a division by zero, or later."""
    for name, least in (("accumulate_grad_batches", 1), ("check_val_every_n_epoch", 1), ("log_every_n_steps", 1)):
        value = config.trainer.get(name)
        if value is not None:
            check_range(f"--trainer.{name}", value, least)
    if type(config.seed_everything) is int:
        check_range("--seed_everything", config.seed_everything, 0, 2**32 - 1)
    if config.get("ckpt_path") == "":
        raise InputError("--ckpt_path is empty, expected the file of a checkpoint")


def _check_weights(model: Any, command: str) -> None:
    """Make sure that something of ours is measured that was trained."""
    known = model.init_args
    if not model.class_path.startswith("quadtree_attention.") or any(known.get(name) for name in _WEIGHTS):
        return
    if (known.get("options") or {}).get("pretrained"):
        return
    ways = "--ckpt_path FILE.ckpt" + (" or --model.init_from" if "init_from" in known else "")
    raise InputError(f"{command} would measure random weights, since no checkpoint is named; expected {ways}")


def _plain_values(value: Any) -> Any:
    """Without the differences between tuples and lists, and between what was parsed and what was saved."""
    value = value.as_dict() if hasattr(value, "as_dict") else value
    if isinstance(value, dict):
        return {name: _plain_values(one) for name, one in value.items()}
    return [_plain_values(one) for one in value] if isinstance(value, (list, tuple)) else value


def _short(class_path: str) -> str:
    return class_path.rpartition(".")[2]


def _say(line: str) -> None:
    typer.echo(f"quadtree: {line}", err=True)
