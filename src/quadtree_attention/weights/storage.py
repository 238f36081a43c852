"""How a model is stored: weights, class and configuration in one .safetensors file; and what checkpoints of our training hold."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from ..errors import InputError
from ..extras import require
from ..files import atomic_write

Config = TypeVar("Config")
Model = TypeVar("Model", bound=nn.Module)


def save_model(model: nn.Module, path: str | Path, *, half: bool = False) -> None:
    """Write weights and configuration, ``model.config``, to a .safetensors file, whole or not at all; ``half`` stores parameters as float16.

    Raises:
        ValueError: another suffix, or parameters that float16 cannot hold.
    """
    config: Any = model.config  # a dataclass
    write_safetensors(model, asdict(config), path, half=half)


def write_safetensors(model: nn.Module, config: Mapping[str, Any], path: str | Path, *, half: bool = False) -> None:
    """Write a model's weights, class and configuration, as `save_model` does."""
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise InputError(f"{path}: unknown suffix {path.suffix!r}, expected .safetensors")
    parameters = {name for name, _ in model.named_parameters()}
    tensors = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu().contiguous()
        if half and name in parameters:
            tensor = tensor.half()
            if not tensor.isfinite().all():
                raise InputError(f"{name} has values that float16 cannot hold; save it without half")
        tensors[name] = tensor
    metadata = {"format": "pt", "model": type(model).__name__, "config": json.dumps(config)}
    content = require("safetensors.torch", "vision").save(tensors, metadata)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def has_config(path: Path) -> bool:
    """Whether a .safetensors file is one of `write_safetensors`, of any model."""
    safetensors = require("safetensors", "vision")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return "config" in (file.metadata() or {})
    except safetensors.SafetensorError:
        return False


def read_safetensors(path: Path, what: str, fits: Callable[[str], bool]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and configuration of a file of `write_safetensors` whose model's class ``fits``; ``what`` names what is wanted."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; is the package installed whole?")
    safetensors = require("safetensors", "vision")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file, or is damaged: {' '.join(str(error).split())}") from None
    if not fits(metadata.get("model", "")) or "config" not in metadata:
        raise InputError(
            f"{path} has no configuration of a {what} in its metadata, expected a file written by quadtree convert"
        )
    try:
        return state, json.loads(metadata["config"])
    except json.JSONDecodeError as error:
        raise InputError(f"{path} has a damaged configuration in its metadata: {error}") from None


def trained_weights(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights of the network in a checkpoint of our training."""
    prefix = "model."
    return {key.removeprefix(prefix): value for key, value in content["state_dict"].items() if key.startswith(prefix)}


def configuration(kind: type[Config], values: Mapping[str, Any], path: Path) -> Config:
    """The configuration, a dataclass, that a file holds.

    Raises:
        ValueError: options that this version does not know, or that do not go together.
    """
    unknown = set(values) - {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if unknown:
        raise InputError(
            f"{path} has options that this version does not know: {', '.join(sorted(unknown))}; update quadtree-attention"
        )
    try:
        return kind(**values)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} has a configuration that does not work: {error}") from None


def filled(model: Model, state: Mapping[str, Tensor], name: str | Path) -> Model:
    """``model`` with these weights, in eval mode; ``name`` says where they are from.

    Raises:
        ValueError: weights that do not fit.
    """
    if problem := misfit(model.state_dict(), state):
        raise InputError(f"{name}: weights do not fit the model: {problem}")
    model.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in state.items()})
    return model.eval()


def misfit(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """In what the names and shapes of two sets of weights differ, in words; empty if they do not."""
    want, have = shapes(wanted), shapes(given)
    missing, unexpected = want.keys() - have.keys(), have.keys() - want.keys()
    differ = sorted(key for key in want.keys() & have.keys() if want[key] != have[key])
    if not missing and not unexpected and not differ:
        return ""
    example = f"for example {min(missing or unexpected)}" if missing or unexpected else ""
    if differ:
        example = f"{differ[0]} has shape {have[differ[0]]}, expected {want[differ[0]]}"
    return f"{len(missing)} missing, {len(unexpected)} unexpected, {len(differ)} of another shape; {example}"


def shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of weights."""
    return {key: tuple(value.shape) for key, value in state.items()}
