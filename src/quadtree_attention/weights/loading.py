"""Loads a network from a name or a file, and converts files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from torch import Tensor, nn

from ..errors import InputError
from ..models.checkpoint import WEIGHT_SUFFIXES, is_safetensors, misfit
from .config import restore, with_weights
from .files import read, save
from .hub import in_hub_or_folder
from .kinds import KINDS, kind_for, kind_of
from .published import PUBLISHED_NETWORKS, from_timm, published_kind
from .registry import PRETRAINED, find, locate, names_for

if TYPE_CHECKING:
    from ..models.detection.model import MaskRCNN, RetinaNet
    from ..models.loftr import LoFTR
    from ..models.segmentation import SemanticFPN
    from ..models.sttr import STTR

Options = Mapping[str, Any] | None
_STARTS = {  # kinds of networks that a network of a kind can start from
    "detector": ("detector", "classifier", "backbone"),
    "segmenter": ("segmenter", "classifier", "backbone"),
    "classifier": ("classifier", "backbone"),
    "backbone": ("backbone", "classifier"),
}
_NEW = {
    "stereo": ("fine.", "context.", *(f"transformer.layers.{n}.mlp" for n in range(0, 64, 2))),
    "segmenter": ("neck.", "head."),
}  # parts that may be missing or of another shape
_BODY = {"detector": "backbone.body.", "segmenter": "backbone."}  # where the backbone is
_HEADS = ("head", "fc.", "classifier", "norm.")  # of classifiers


@overload
def load(
    name_or_path: str | Path, kind: Literal["matcher"], *, architecture: str | None = ..., options: Options = ...
) -> LoFTR: ...
@overload
def load(name_or_path: str | Path, kind: Literal["stereo"], *, options: Options = ...) -> STTR: ...
@overload
def load(name_or_path: str | Path, kind: Literal["detector"], *, options: Options = ...) -> RetinaNet | MaskRCNN: ...
@overload
def load(name_or_path: str | Path, kind: Literal["segmenter"], *, options: Options = ...) -> SemanticFPN: ...
@overload
def load(
    name_or_path: str | Path, kind: str | None = ..., *, architecture: str | None = ..., options: Options = ...
) -> nn.Module: ...
def load(
    name_or_path: str | Path,
    kind: str | None = None,
    *,
    architecture: str | None = None,
    options: Options = None,
) -> nn.Module:
    """Load a network, on the CPU, in eval mode and float32; its ``config`` is its configuration.

    Args:
        name_or_path: a name in `PRETRAINED`, or "tiny", the one of the kind that comes with the package; a .safetensors file of `save`; a
            checkpoint, published or of our training; a folder of `save_pretrained`, or such a repository of the Hub, "hf-hub:OWNER/NAME". For
            classifiers also a name in timm with pretrained weights, such as "pvt_v2_b0".
        kind: the kind that it must be, a name in `KINDS`; None: the one that the name or file says. "backbone" takes that of a published detector or
            segmenter too.
        architecture: of a published matcher given by its path, a name in `ARCHITECTURES`; by default it is detected from the weights and the
            file's name.
        options: fields of the configuration to change that the weights do not depend on, such as ``{"topk": (32, 16)}`` of a matcher.

    Raises:
        ValueError: an unknown name or option, weights of another kind, or that do not fit; an architecture or options that have no effect.
        OSError: a file that is missing, or cannot be downloaded.
    """
    if kind is not None and kind not in KINDS:
        raise InputError(f"kind is {kind!r}, expected one of {', '.join(KINDS)}")
    model = _load(name_or_path, tuple(KINDS) if kind is None else (kind,), architecture)
    return _with_options(model, options, name_or_path) if options else model


def convert(source: str | Path, path: str | Path, *, architecture: str | None = None, half: bool = False) -> nn.Module:
    """Load any network, see `load`, and `save` it; returns the network."""
    model = load(source, architecture=architecture)
    save(model, path, half=half)
    return model


def initialize(model: nn.Module, kind: str, name_or_path: str | Path) -> None:
    """Initialise a network for training from the weights of a name or a file.

    These parts keep their random weights: a classifier's head for other classes, neck and head of a segmenter where shapes differ, and parts of a
    stereo network that the file lacks. Detectors and segmenters can start from a classifier's backbone.

    Args:
        model: the network; a classifier may be any timm network.
        kind: its kind, a name in `KINDS`.
        name_or_path: as in `load`.

    Raises:
        ValueError, OSError: as in `load`; weights that do not fit.
    """
    source: Any = _load(name_or_path, _STARTS.get(kind, (kind,)), None)
    given: dict[str, Tensor] = source.state_dict()
    wanted = model.state_dict()
    new: tuple[str, ...] = _NEW.get(kind, ())
    if kind in _BODY and kind_of(source.config).task == "classification":
        body = _BODY[kind]
        given = {body + re.sub(r"^([a-z]+)\.(\d+)\.", r"\1_\2.", key): value for key, value in given.items()}
        heads = tuple(body + head for head in _HEADS)
        given = {k: v for k, v in given.items() if k in wanted or not k.startswith(heads)}
        wanted = {k: v for k, v in wanted.items() if k.startswith(body)}
    elif kind in ("classifier", "backbone"):
        head = getattr(model, "default_cfg", {}).get("classifier") or ()
        new = tuple(f"{name}." for name in ((head,) if isinstance(head, str) else head))
    given = {k: v for k, v in given.items() if k in wanted or not k.endswith("num_batches_tracked")}
    kept = {k for k in wanted if k.startswith(new) and (k not in given or given[k].shape != wanted[k].shape)}
    given = {k: v for k, v in given.items() if k not in kept and (k in wanted or not k.startswith(new))}
    if problem := misfit({k: v for k, v in wanted.items() if k not in kept}, given):
        raise InputError(f"{name_or_path}: weights do not fit the model: {problem}")
    model.load_state_dict(given, strict=False)


def _load(name_or_path: str | Path, kinds: Sequence[str], architecture: str | None) -> nn.Module:
    """Load a network of one of these kinds; "tiny" is that of the first."""
    name = str(name_or_path)
    tasks = list(dict.fromkeys(KINDS[kind].task for kind in kinds))
    task = next(
        (task for task in tasks if find(name, task) is not None), tasks[-1] if len(kinds) < len(KINDS) else "matching"
    )
    row = find(name, task)
    if task == "classification" and _is_timms(name_or_path, row is not None and row.url is not None):
        _refuse_architecture(architecture, name_or_path)
        return from_timm(name)
    path, row = locate(name_or_path, task)
    stored = read(path)
    if row is not None or stored.kind is not None:
        _refuse_architecture(architecture, name_or_path)
    if stored.kind is not None:
        _check_kind(stored.kind, kinds, path)
        found = KINDS[stored.kind]
        return restore(found.config_class(), found.network, stored.config, stored.content, path)
    if is_safetensors(path):
        if "classifier" in kinds and in_hub_or_folder(name_or_path):  # as timm writes them
            return from_timm(name if path.parent != Path(name) else f"local-dir:{name}")
        raise InputError(
            f"{path} has no kind and configuration in its metadata, expected a file that quadtree convert wrote"
        )
    detected = published_kind(stored.content) if row is None else kind_for(row.task).name
    if detected is None and kinds[0] not in PUBLISHED_NETWORKS:
        raise InputError(
            f"{path} holds no {kinds[0]} network, expected a checkpoint of a training, or what quadtree convert wrote"
        )
    kind = detected or kinds[0]  # its reader says which names are unknown
    if kind not in kinds and "backbone" in kinds and kind != "matcher":
        kind = "backbone"
    _check_kind(kind, kinds, path)
    if architecture is not None and kind != "matcher":
        raise InputError(
            f"architecture is {architecture!r}, expected none: {path} holds a {kind}; it is for published matchers alone"
        )
    options: dict[str, Any] = {}
    if kind == "matcher":
        options["architecture"] = architecture if row is None else row.name
    elif kind == "detector" and row is not None:
        options["names"] = (row.name.removesuffix("_1x"),)
    return PUBLISHED_NETWORKS[kind](stored.content, path, **options)


def _is_timms(name_or_path: str | Path, published: bool) -> bool:
    """Whether timm loads the classifier of that name: our published ones, and timm's own."""
    name, path = str(name_or_path), Path(name_or_path)
    if published:
        return True
    if name == "tiny" or name in PRETRAINED or in_hub_or_folder(name_or_path) or path.exists():
        return False
    if name.lower().endswith(WEIGHT_SUFFIXES) or path.parent != Path():
        return False
    from ..models.classifier import knows_backbone

    if not knows_backbone(name):
        names = ", ".join(names_for("classification"))
        raise InputError(
            f"unknown model {name!r}, expected one of {names}, a name that timm knows, or the path of a file"
        )
    return True


def _check_kind(found: str, kinds: Sequence[str], path: Path) -> None:
    if found not in kinds:
        holds, wanted = (f"{one} network" if one == "stereo" else one for one in (found, kinds[0]))
        raise InputError(f"{path} is of a {holds}, expected a {wanted}; {KINDS[found].command} takes it")


def _refuse_architecture(architecture: str | None, name_or_path: str | Path) -> None:
    if architecture is not None:
        raise InputError(
            f"architecture is {architecture!r}, expected none: {name_or_path} says its own; it is for published files alone"
        )


def _with_options(model: nn.Module, options: Mapping[str, Any], name_or_path: str | Path) -> nn.Module:
    """Rebuild a network with other options and the same weights."""
    config: Any = model.config
    if "topk" in options and not str(getattr(config, "attention", "quadtree")).startswith("quadtree"):
        raise InputError(f"{name_or_path} has {config.attention} attention, which has no topk; leave it out")
    try:
        config = replace(config, **options)
    except TypeError as error:
        raise InputError(
            f"options do not fit the model: {error}; see {type(config).__name__} for what there is"
        ) from None
    return with_weights(kind_of(config).network(config), model.state_dict(), name_or_path)
