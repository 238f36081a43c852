"""What can be loaded: embedded weights, published checkpoints, and files; and how a model is stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal
from urllib.error import URLError

import torch
from torch import Tensor, nn

from ..extras import require
from ..files import atomic_write
from ..models.loftr import LOFTR_PRESETS, LoFTR, LoFTRConfig
from .convert import convert_published
from .published import read_checkpoint

EMBEDDED = Path(__file__).parent / "embedded"
_RELEASES = "https://github.com/Tangshitao/QuadTreeAttention/releases/download/"
_FEATURE_MATCH, _CLS = f"{_RELEASES}QuadTreeAttention_feature_match", f"{_RELEASES}QuadTreeAttention_cls"
_LOFTR = replace(LOFTR_PRESETS["outdoor"], attention="linear", block="loftr")

# Architectures that a checkpoint without one of its own can have. "loftr_old" is what LoFTR's first released weights need.
ARCHITECTURES: dict[str, LoFTRConfig] = {
    **LOFTR_PRESETS,
    "loftr": _LOFTR,
    "loftr_old": replace(_LOFTR, position="sine_bug"),
}


@dataclass(frozen=True)
class Pretrained:
    """One row of the table of weights.

    task: what it is for; what: one line; licence: of the weights; megabytes: size of the file, of a download by its float32 weights alone;
    url: None if the weights come with the package.
    """

    name: str
    task: Literal["matching", "stereo", "classification"]
    what: str
    licence: str
    megabytes: float
    url: str | None = None

    @property
    def source(self) -> str:
        """Where the weights come from, in words."""
        return "in the package" if self.url is None else self.url

    @property
    def path(self) -> Path:
        """Where the weights are on this machine, or will be once they are downloaded."""
        if self.url is None:
            return EMBEDDED / f"{self.name}.safetensors"
        suffix = Path(self.url).suffix
        return Path(torch.hub.get_dir()) / "checkpoints" / "quadtree_attention" / f"{self.name}{suffix}"

    @property
    def card(self) -> Path | None:
        """Data, recipe and measured results of embedded weights."""
        return EMBEDDED / f"{self.name}.md" if self.url is None else None


PRETRAINED: dict[str, Pretrained] = {
    row.name: row
    for row in (
        Pretrained("tiny", "matching", "any scene, small and fast", "MIT", 2.1),
        Pretrained("indoor", "matching", "trained on ScanNet", "Apache-2.0", 50.8, f"{_FEATURE_MATCH}/indoor.ckpt"),
        Pretrained("outdoor", "matching", "trained on MegaDepth", "Apache-2.0", 50.8, f"{_FEATURE_MATCH}/outdoor.ckpt"),
        Pretrained("stereo_tiny", "stereo", "any scene, small and fast", "MIT", 1.3),
        Pretrained(
            "classify_tiny", "classification", "ten kinds of clothes, 64x64 pixels, 1.3 M parameters", "MIT", 2.6
        ),
        *(
            Pretrained(
                f"quadtree_b{n}",
                "classification",
                f"ImageNet-1K, {figures} multiply-adds",
                "MIT",
                size,
                f"{_CLS}/b{n}.pth",
            )
            for n, (figures, size) in enumerate(
                (
                    ("top-1 72.0 %, 3.6 M parameters, 0.6 G", 14.4),
                    ("top-1 80.0 %, 13.7 M parameters, 2.3 G", 54.6),
                    ("top-1 82.7 %, 25.1 M parameters, 4.5 G", 100.3),
                    ("top-1 83.8 %, 46.3 M parameters, 7.8 G", 185.1),
                    ("top-1 84.0 %, 64.2 M parameters, 11.4 G", 256.8),
                )
            )
        ),
    )
}


def find(name: str, task: str) -> Pretrained | None:
    """The weights of that name for a task, if there are any; "tiny" are those that come with the package, for every task."""
    if name == "tiny":
        return next(row for row in PRETRAINED.values() if row.task == task and row.url is None)
    row = PRETRAINED.get(name)
    return row if row is not None and row.task == task else None


def load_matcher(name_or_path: str | Path, *, architecture: str | None = None) -> LoFTR:
    """Load a matcher, on the CPU, in eval mode and float32.

    Args:
        name_or_path: a name in `PRETRAINED`; a .safetensors file of `save_model`; a .ckpt, .pth or .pt file, published or of our training.
        architecture: a name in `ARCHITECTURES`, for published files by path; by default it is told from the weights and the file's name.

    Raises:
        ValueError: an unknown name, or weights that do not fit.
        OSError: a file that is missing, or cannot be downloaded.
    """
    names = [row.name for row in PRETRAINED.values() if row.task == "matching"]
    if isinstance(name_or_path, str) and name_or_path in names:
        row = PRETRAINED[name_or_path]
        if row.url is None:
            return _load_safetensors(row.path)
        return _build(LOFTR_PRESETS[row.name], convert_published(read_checkpoint(downloaded(row))), str(row.path))
    path = Path(name_or_path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, expected a file of weights")
    if not path.exists():
        if path.suffix or path.parent != Path():
            raise FileNotFoundError(f"{path} does not exist, expected a file of weights or one of {', '.join(names)}")
        raise ValueError(
            f"unknown model {name_or_path!r}, expected one of {', '.join(names)}, or the path of a file of weights"
        )
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    if path.suffix not in (".ckpt", ".pth", ".pt"):
        raise ValueError(f"{path}: unknown suffix {path.suffix!r}, expected .safetensors, .ckpt, .pth or .pt")
    return _load_checkpoint(path, architecture)


def save_model(model: LoFTR, path: str | Path, *, half: bool = False) -> None:
    """Write weights and configuration to a .safetensors file, whole or not at all; ``half`` stores parameters as float16.

    Raises:
        ValueError: another suffix, or parameters that float16 cannot hold.
    """
    write_safetensors(model, asdict(model.config), path, half=half)


def write_safetensors(model: nn.Module, config: Mapping[str, Any], path: str | Path, *, half: bool = False) -> None:
    """Write a model's weights, class and configuration, as `save_model` does."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: unknown suffix {path.suffix!r}, expected .safetensors")
    parameters = {name for name, _ in model.named_parameters()}
    tensors = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu().contiguous()
        if half and name in parameters:
            tensor = tensor.half()
            if not tensor.isfinite().all():
                raise ValueError(f"{name} has values that float16 cannot hold; save it without half")
        tensors[name] = tensor
    metadata = {"format": "pt", "model": type(model).__name__, "config": json.dumps(config)}
    content = require("safetensors.torch", "vision").save(tensors, metadata)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def _load_safetensors(path: Path) -> LoFTR:
    state, config = read_safetensors(path, "matcher", lambda name: name == "LoFTR")
    return _build(_config(config, path), state, str(path))


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
        raise ValueError(f"{path} is not a safetensors file, or is damaged: {' '.join(str(error).split())}") from None
    if not fits(metadata.get("model", "")) or "config" not in metadata:
        raise ValueError(
            f"{path} has no configuration of a {what} in its metadata, expected a file written by quadtree convert"
        )
    try:
        return state, json.loads(metadata["config"])
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} has a damaged configuration in its metadata: {error}") from None


def _load_checkpoint(path: Path, architecture: str | None) -> LoFTR:
    if architecture is not None and architecture not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {architecture!r}, expected one of {', '.join(ARCHITECTURES)}")
    content = read_checkpoint(path)
    config = content.get("config")
    if isinstance(config, Mapping):  # of our own training
        weights = {
            key.removeprefix("model."): value
            for key, value in content["state_dict"].items()
            if key.startswith("model.")
        }
        return _build(_config(config, path), weights, str(path))
    try:
        state = convert_published(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    rest = {key: value for key, value in state.items() if key != "bin_score"}
    chosen = ARCHITECTURES[architecture or _told_from(rest, path)]
    if len(rest) < len(state):
        chosen = replace(chosen, matching="optimal_transport")
    return _build(chosen, state, str(path))


def _config(values: Any, path: Path) -> LoFTRConfig:
    unknown = set(values) - {field.name for field in fields(LoFTRConfig)}
    if unknown:
        raise ValueError(
            f"{path} has options that this version does not know: {', '.join(sorted(unknown))}; update quadtree-attention"
        )
    try:
        return LoFTRConfig(**values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} has a configuration that does not work: {error}") from None


def _told_from(state: Mapping[str, Tensor], path: Path) -> str:
    """Name of the one architecture that the weights fit; the file's name decides between those that differ in options alone."""
    fitting = []
    for name, config in ARCHITECTURES.items():
        with torch.device("meta"):
            shapes = _shapes(LoFTR(config).state_dict())
        if shapes == _shapes(state):
            fitting.append(name)
    if not fitting:
        raise ValueError(f"{path} does not fit any known architecture: {', '.join(ARCHITECTURES)}")
    named = [name for name in fitting if name in path.stem]
    chosen = named if len(named) == 1 else fitting
    if len(chosen) > 1:
        raise ValueError(
            f"{path} fits {' and '.join(chosen)}, which differ in options that the file does not hold; "
            f"choose with: quadtree convert {path} OUT.safetensors --architecture {chosen[0]}"
        )
    return chosen[0]


def _build(config: LoFTRConfig, state: Mapping[str, Tensor], name: str) -> LoFTR:
    model = LoFTR(config)
    if problem := misfit(model.state_dict(), state):
        raise ValueError(f"{name}: weights do not fit the model: {problem}")
    model.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in state.items()})
    return model.eval()


def misfit(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str:
    """In what the names and shapes of two sets of weights differ, in words; empty if they do not."""
    want, have = _shapes(wanted), _shapes(given)
    missing, unexpected = want.keys() - have.keys(), have.keys() - want.keys()
    differ = sorted(key for key in want.keys() & have.keys() if want[key] != have[key])
    if not missing and not unexpected and not differ:
        return ""
    example = f"for example {min(missing or unexpected)}" if missing or unexpected else ""
    if differ:
        example = f"{differ[0]} has shape {have[differ[0]]}, expected {want[differ[0]]}"
    return f"{len(missing)} missing, {len(unexpected)} unexpected, {len(differ)} of another shape; {example}"


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}


def downloaded(row: Pretrained) -> Path:
    """The file of published weights; downloaded to the torch hub folder if it is not there."""
    path = row.path
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(row.url, str(path))  # under another name until it is whole
        except (URLError, OSError) as error:
            reason = getattr(error, "reason", None) or error
            raise OSError(
                f"cannot download {row.name} ({reason}); fetch {row.url} by hand and put it at {path}"
            ) from None
    return path
