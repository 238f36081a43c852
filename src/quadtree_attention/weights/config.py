"""Restores networks from files that are not trusted: a configuration is checked before anything is built, and limited by the weights in the file."""

from __future__ import annotations

import collections.abc
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import InputError
from ..models.checkpoint import misfit

Config = TypeVar("Config")
Model = TypeVar("Model", bound=nn.Module)

# Limits on what a file may ask for. Tensors are compared with the file's own; these are for values that no tensor shows.
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
_BUFFERS = 50_000_000  # numbers that are not weights, such as tables of positions


def configuration(kind: type[Config], values: Any, path: Path) -> Config:
    """Make the configuration, a dataclass, from the values in a file, and check their types and sizes.

    Raises:
        ValueError: options that this version does not know, that have another type, or that do not fit together.
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
    """Whether a value has the annotated type, and contains no number larger than ``most``."""
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
    """Whether a value is a number, a string, or a list of these, not deeply nested."""
    if isinstance(value, list | tuple):
        return depth > 0 and all(_is_plain(one, most, depth - 1) for one in value)
    return value is None or isinstance(value, bool | str) or _is_of(value, float, most)


def _words(hint: Any, name: str) -> str:
    """Describe the expected type in words."""
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


def restore(
    kind: type[Config], build: Callable[[Config], Model], values: Any, state: Mapping[str, Any], path: Path
) -> Model:
    """Restore the network of a file that holds its configuration, in eval mode.

    The file is not trusted: the network is first built without memory, and then really only if it has the names and shapes of the file's tensors.

    Args:
        kind: class of the configuration, a dataclass; build: makes the network, with random weights; values: of the configuration.
        state: the weights; path: the file, for errors.

    Raises:
        ValueError: a bad configuration, or weights that do not fit it.
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
    return with_weights(build(config), state, path)


class _Bounded(TorchFunctionMode):
    """Stops the building of a network that gets far more parts than the file has tensors."""

    def __init__(self, tensors: int) -> None:
        super().__init__()
        self._left = 2000 + 60 * tensors  # timm's networks and ours call torch up to 15 times per tensor

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self._left -= 1
        if self._left < 0:
            raise InputError("it makes a network of many more parts than there are tensors in the file")
        if function is torch.norm_except_dim:  # for weight norm: on the meta device torch would load SymPy
            weight, _, dim = args
            return weight.new_empty([n if axis == dim else 1 for axis, n in enumerate(weight.shape)])
        if function in (torch.randn, torch.rand):
            function = torch.empty
        if getattr(function, "__name__", "") in _FILLING:
            tensor = args[0] if args else (kwargs or {}).get("tensor")
            if isinstance(tensor, Tensor) and tensor.is_meta:
                return tensor  # nothing to fill; and torch would import modules for longer than a match takes
        return function(*args, **kwargs or {})


def with_weights(model: Model, state: Mapping[str, Tensor], name: str | Path) -> Model:
    """Load weights into ``model``, and return it in eval mode; ``name`` says in errors where they are from.

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
    """Check that all values are plain tensors."""
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
