"""What a training run may do: which checkpoint it goes on from, whose settings count, and that it overwrites none.

The configuration of a run is what Lightning's command line makes of a recipe: ``model`` and ``data`` with their class_path and init_args, and
``trainer``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import LightningModule

from ..errors import InputError, check_range
from .checkpoints import newest_checkpoint
from .former import options_today

_WEIGHTS = ("init_from", "weights")  # arguments of tasks that name them


def check_trainer(config: Any) -> None:
    """Make sure of what Lightning itself finds out by a division by zero, or later.

    Raises:
        ValueError: the first option that makes no sense.
    """
    for name in ("accumulate_grad_batches", "check_val_every_n_epoch", "log_every_n_steps"):
        value = config.trainer.get(name)
        if value is not None:
            check_range(f"--trainer.{name}", value, 1)
    if type(config.seed_everything) is int:
        check_range("--seed_everything", config.seed_everything, 0, 2**32 - 1)
    if config.get("ckpt_path") == "":
        raise InputError("--ckpt_path is empty, expected the file of a checkpoint")


def checkpoint_folders(config: Any) -> tuple[list[str], bool]:
    """Where checkpoints go: in the folder of the run, ``trainer.default_root_dir``, where a recipe names no other, which is then put in.

    Returns:
        The folders, and whether any checkpoint is written by what the recipe says.
    """
    root, callbacks = config.trainer.default_root_dir, config.trainer.callbacks or []
    callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
    writers = [one.init_args for one in callbacks if one.class_path.endswith(".ModelCheckpoint")]
    for writer in writers:
        writer.dirpath = writer.dirpath or root
    folders = [*{writer.dirpath: None for writer in writers if writer.dirpath}, *([root] if root else [])]
    return folders, bool(writers) or not root or config.trainer.enable_checkpointing is False


def checkpoint_to_resume(config: Any, folders: Sequence[str]) -> str | None:
    """The checkpoint to go on from, by --resume auto or --ckpt_path; None: the run begins.

    Raises:
        ValueError: the run would overwrite a checkpoint in its folders; options that exclude each other.
    """
    if config.trainer.fast_dev_run or config.trainer.enable_checkpointing is False:
        return config.ckpt_path
    if config.resume and config.ckpt_path:
        raise InputError(f"--resume auto and --ckpt_path {config.ckpt_path} exclude each other, expected one of them")
    newest = newest_checkpoint(folders)
    if config.resume:
        if not folders:
            raise InputError("--resume auto needs the folder of the run, set --trainer.default_root_dir")
        return str(newest) if newest else None
    requeued = SLURMEnvironment.detect() and any([*Path(one).glob("hpc_ckpt_*.ckpt")] for one in folders)
    given = config.ckpt_path
    if newest is None or requeued:  # Lightning goes on by itself where SLURM begins a job anew
        return given
    elsewhere = Path(given or "").is_file() and Path(given).resolve().parent not in [Path(f).resolve() for f in folders]
    if given is None or elsewhere:
        raise InputError(
            f"{newest} is the checkpoint of an earlier run, which this one would overwrite; go on with it by --resume auto, "
            "or begin in another folder with --trainer.default_root_dir FOLDER"
        )
    return given


def check_trained(model: Any, command: str) -> None:
    """Make sure that validate and test measure something of ours that was trained.

    Raises:
        ValueError: no weights are named.
    """
    known = model.init_args
    if not model.class_path.startswith("quadtree_attention.") or any(known.get(name) for name in _WEIGHTS):
        return
    options = known.get("options") or {}
    if options.get("pretrained") or (options.get("options") or {}).get("pretrained"):
        return
    ways = "--ckpt_path FILE.ckpt" + (" or --model.init_from" if "init_from" in known else "")
    raise InputError(f"{command} would measure random weights, since no checkpoint is named; expected {ways}")


def kept_options(saved: Mapping[str, Any], model: Any, asked: Sequence[str], path: str) -> tuple[dict[str, Any], str]:
    """The options of a checkpoint's task, which a run that goes on from it keeps.

    Args:
        saved: what the checkpoint says of them, also one of a former version.
        model: of the run's configuration.
        asked: options that were given on the command line, such as "optimization.learning_rate"; they must agree with the checkpoint.
        path: names the checkpoint.

    Returns:
        The options, and a line about those that the recipe has otherwise, empty if there are none.

    Raises:
        ValueError: a checkpoint of another task; an option that was asked for and differs.
    """
    task, wanted_task = (one.rpartition(".")[2] for one in (saved.get("_class_path", ""), model.class_path))
    if task not in ("", wanted_task):  # a module may have moved since
        hint = "; name it by --model.weights, without --ckpt_path" if "weights" in model.init_args else ""
        raise InputError(f"{path} is a checkpoint of {task}, expected one of {wanted_task}{hint}")
    kept = {name: value for name, value in saved.items() if name not in ("_class_path", "_instantiator")}
    kept = options_today(wanted_task, kept)
    wanted, have = _flat(model.init_args), _flat(kept)
    other = {name: value for name, value in have.items() if name in wanted and wanted[name] != value}
    for name, value in other.items():
        if any(name == one or name.startswith(f"{one}.") or one.startswith(f"{name}.") for one in asked):
            raise InputError(
                f"{name} is {value} in {path} and stays so, but --model.{name} {wanted[name]} was asked for; leave it out, "
                "or begin a new run from these weights with --model.init_from"
            )
    listed = ", ".join(f"{name} {value} (not {wanted[name]})" for name, value in other.items())
    return kept, f"{path} has settings of its own, which are kept: {listed}" if other else ""


def check_shapes(model: LightningModule, shapes: Mapping[str, tuple[int, ...]], path: str) -> None:
    """Make sure that a checkpoint's weights, of these shapes, fit the task.

    Raises:
        ValueError: the first that does not.
    """
    for name, value in model.state_dict().items():
        if shapes.get(name) != tuple(value.shape):
            raise InputError(
                f"{path} does not fit the model: {name} has shape {shapes.get(name)}, expected {tuple(value.shape)}"
            )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Options of a task and of its sections by name; tuples as lists, and what was parsed as what was saved."""
    value = value.as_dict() if hasattr(value, "as_dict") else value
    flat: dict[str, Any] = {}
    for name, one in value.items():
        one = _plain(one)
        if prefix == "" and isinstance(one, dict) and name in ("optimization", "loss"):
            flat |= _flat(one, f"{name}.")
        else:
            flat[prefix + name] = one
    return flat


def _plain(value: Any) -> Any:
    value = value.as_dict() if hasattr(value, "as_dict") else value
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value
