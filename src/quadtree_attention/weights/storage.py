"""How a model is stored: weights, class and configuration in one .safetensors file; and what checkpoints of our training hold."""

from __future__ import annotations

import collections.abc
import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import InputError
from ..extras import require
from ..files import atomic_write
from .published import weights_in

Config = TypeVar("Config")
Model = TypeVar("Model", bound=nn.Module)

# How much a file may ask for. Sizes of tensors are compared with the file's own; these are for what no tensor tells.
_LONGEST_CONFIG = 10_000_000  # characters: some hundred thousand names of classes
_LARGEST = 1_000_000  # of any number, but these:
_MOST = {
    "sinkhorn_iterations": 1000,
    "fine_window": 99,
    "fine_reach": 1000,
    "sr_pool": 1000,
    "border": 1000,
    "stride": 1000,
    "input_size": 10_000,
    "min_size": 10_000,
    "max_size": 20_000,
    "short_side": 10_000,
    "long_side": 20_000,
    "divisor": 1024,
    "max_detections": 100_000,
    "candidates": 100_000,
    "crop_pct": 10,
}
# Options by which timm reads other files, or downloads them.
_ELSEWHERE = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}
_FILLING = {"uniform_", "normal_", "fill_", "zero_", "mul_", "add_", "sub_", "div_", "erfinv_", "clamp_", "copy_"}
_BUFFERS = 50_000_000  # numbers that are no weights, as tables of positions


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


def read_metadata(path: Path) -> dict[str, str]:
    """What a .safetensors file says of itself: of one of `write_safetensors` "model" and "config"; nothing of a damaged one."""
    safetensors = require("safetensors", "vision")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except safetensors.SafetensorError:
        return {}


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
    if "config" not in metadata:
        raise InputError(
            f"{path} has no configuration of a {what} in its metadata, expected a file written by quadtree convert"
        )
    config = _read_config(metadata["config"], path)
    model = metadata.get("model", "")
    refuse_other({"model": model, **config}, path, what)
    if not fits(model):
        raise InputError(f"{path} has no configuration of a {what}, but of another network ({model[:40]!r})")
    return state, config


def refuse_other(content: Mapping[str, Any], path: Path, what: str) -> None:
    """Raise InputError with the command that takes it if a file, by what it says of itself, is not of a ``what`` but of another kind."""
    model = content.get("model")
    for kind, command, is_one in (
        ("matcher", "match", model == "LoFTR"),
        ("stereo network", "stereo", model == "STTR"),
        ("classifier", "classify", isinstance(content.get("classifier"), Mapping)),
        ("detector", "detect", isinstance(content.get("detector"), Mapping)),
        ("segmenter", "segment", model == "SemanticFPN" or isinstance(content.get("segmenter"), Mapping)),
    ):
        if is_one and kind != what:
            raise InputError(f"{path} is of a {kind}, expected a {what}; quadtree {command} takes it")


def _read_config(text: str, path: Path) -> dict[str, Any]:
    if len(text) > _LONGEST_CONFIG:
        raise InputError(
            f"{path} has a configuration of {len(text)} characters, expected {_LONGEST_CONFIG} at the very most"
        )
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:  # no JSON, or a number of too many digits; too deep
        raise InputError(f"{path} has a damaged configuration in its metadata: {error}") from None
    if not isinstance(config, dict):
        raise InputError(f"{path} has a {type(config).__name__} as configuration, expected names with values")
    return config


def trained_weights(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Weights of the network in a checkpoint of our training."""
    prefix = "model."
    try:
        state = weights_in(content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def configuration(kind: type[Config], values: Any, path: Path) -> Config:
    """The configuration, a dataclass, that a file holds, with each value of the type that the dataclass says, and of a size that makes sense.

    Raises:
        ValueError: options that this version does not know, of another type, or that do not go together.
    """
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise InputError(f"{path} has a {type(values).__name__} as configuration, expected names with values")
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    unknown = set(values) - set(known)
    if unknown:
        raise InputError(
            f"{path} has options that this version does not know: {', '.join(sorted(unknown))[:200]}; update quadtree-attention"
        )
    hints = get_type_hints(kind)
    for name, field in known.items():
        if name not in values:
            if field.default is MISSING and field.default_factory is MISSING:
                raise InputError(f"{path} has no {name} in its configuration")
            continue
        if not _is_of(values[name], hints[name], _MOST.get(name, _LARGEST)):
            raise InputError(
                f"{path} has {name} = {_short(values[name])} in its configuration, expected {_words(hints[name], name)}"
            )
    if elsewhere := _ELSEWHERE & set(values.get("options", ())):
        raise InputError(
            f"{path} has {min(elsewhere)} among the options of its configuration, which leads to other files"
        )
    try:
        return kind(**values)
    except InputError as error:
        raise InputError(f"{path} has a configuration that does not work: {error}") from None


def _is_of(value: Any, hint: Any, most: float) -> bool:
    """Whether a value is of a type as annotated, and no number in it is larger than ``most``."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in inner)
    if origin in (Union, UnionType):
        return any(_is_of(value, one, most) for one in inner)
    if origin is tuple and inner[-1] is not Ellipsis:
        return (
            isinstance(value, list | tuple)
            and len(value) == len(inner)
            and all(_is_of(one, kind, most) for one, kind in zip(value, inner, strict=True))
        )
    if origin in (tuple, collections.abc.Sequence):
        return isinstance(value, list | tuple) and all(_is_of(one, inner[0], most) for one in value)
    if origin is collections.abc.Mapping:
        return isinstance(value, Mapping) and all(isinstance(k, str) and _is_plain(v, most) for k, v in value.items())
    if hint in (int, float):
        kinds = int if hint is int else int | float
        return isinstance(value, kinds) and not isinstance(value, bool) and abs(value) <= most  # not NaN either
    return isinstance(value, hint)


def _is_plain(value: Any, most: float, depth: int = 4) -> bool:
    """Whether it is a number, a word, or lists of these, few deep."""
    if isinstance(value, list | tuple):
        return depth > 0 and all(_is_plain(one, most, depth - 1) for one in value)
    return value is None or isinstance(value, bool | str) or _is_of(value, float, most)


def _words(hint: Any, name: str) -> str:
    """What is expected of a value, in words."""
    origin, inner = get_origin(hint), get_args(hint)
    most = _MOST.get(name, _LARGEST)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin in (Union, UnionType):
        return " or ".join("null" if one is NoneType else _words(one, name) for one in inner)
    if origin is collections.abc.Mapping:
        return "names with plain values"
    if origin in (tuple, collections.abc.Sequence):
        return f"a list, each {_words(inner[0], name)}"
    if hint in (int, float):
        return f"a {'whole ' * (hint is int)}number up to {most}"
    return {bool: "true or false", str: "a word"}[hint]


def _short(value: Any) -> str:
    if isinstance(value, list | tuple | Mapping):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and abs(value) > 10**20:  # Python refuses to write more than some thousand digits
        return "a number of too many digits"
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."


def restored(
    kind: type[Config], build: Callable[[Config], Model], values: Any, state: Mapping[str, Any], path: Path
) -> Model:
    """The network of a file that holds its configuration, in eval mode.

    What the file says is not trusted: it is built without memory first, and for good only if it has the names and shapes of the file's tensors.

    Args:
        kind: of the configuration, a dataclass; build: makes the network, with random weights; values: of the configuration.
        state: the weights; path: names the file.

    Raises:
        ValueError: a configuration as of `configuration`, or that makes no network; weights that do not fit it.
    """
    config = configuration(kind, values, path)
    _check_tensors(state, path)
    try:
        with torch.device("meta"), _Bounded(len(state)):
            model = build(config)
    except InputError as error:
        raise InputError(f"{path} has a configuration that does not work: {error}") from None
    _check_fit(model, state, path)
    there = sum(value.numel() for value in state.values())
    beyond = sum(value.numel() for value in model.buffers()) - there
    if beyond > _BUFFERS:
        raise InputError(f"{path} has a configuration that needs {beyond} numbers more than the file holds")
    return filled(build(config), state, path)


class _Bounded(TorchFunctionMode):
    """Ends the building of a network that comes to have far more parts than a file has tensors."""

    def __init__(self, tensors: int) -> None:
        super().__init__()
        self._left = 2000 + 60 * tensors  # networks of timm's and ours call torch up to 15 times a tensor

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self._left -= 1
        if self._left < 0:
            raise InputError("it makes a network of many more parts than there are tensors in the file")
        if function in (torch.randn, torch.rand):
            function = torch.empty
        if getattr(function, "__name__", "") in _FILLING:
            tensor = args[0] if args else (kwargs or {}).get("tensor")
            if isinstance(tensor, Tensor) and tensor.is_meta:
                return tensor  # nothing to fill; and torch would load what takes longer than a match
        return function(*args, **kwargs or {})


def filled(model: Model, state: Mapping[str, Tensor], name: str | Path) -> Model:
    """``model`` with these weights, in eval mode; ``name`` says where they are from.

    Raises:
        ValueError: weights that do not fit, or are not finite.
    """
    _check_tensors(state, name)
    _check_fit(model, state, name)
    state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
    for key, value in state.items():
        if not value.isfinite().all():
            raise InputError(
                f"{name}: {key} holds NaN or infinity; the training that wrote it had diverged, take an earlier checkpoint"
            )
    model.load_state_dict(state)
    return model.eval()


def _check_fit(model: nn.Module, state: Mapping[str, Tensor], name: str | Path) -> None:
    if problem := misfit(model.state_dict(), state):
        raise InputError(f"{name}: weights do not fit the model: {problem}")


def _check_tensors(state: Mapping[str, Any], name: str | Path) -> None:
    """Make sure that all are plain tensors."""
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise InputError(f"{name}: {key} holds a {type(value).__name__}, expected a tensor")
        if (
            value.layout != torch.strided
            or value.is_quantized
            or value.is_nested
            or value.is_complex()
            or value.is_meta
        ):
            raise InputError(
                f"{name}: {key} is a sparse, quantized, nested, complex or empty tensor, expected a plain one"
            )


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
