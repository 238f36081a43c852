"""A classifier's configuration: network, names of the classes, and how images are prepared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..data.images import IMAGENET_MEAN, IMAGENET_STD
from ..errors import InputError
from ..extras import require
from ..nn.base import Attention

# What timm's networks raise when they are built with options that do not fit them.
_MISFIT = (TypeError, ValueError, AssertionError, LookupError, AttributeError, ArithmeticError, RuntimeError)


@dataclass(frozen=True)
class ClassifierConfig:
    """Everything that defines a classifier, except its weights.

    model: any name in timm, such as "quadtree_b0"; options: its further arguments; labels: names of the classes; input_size: (channels,
    height, width); mean, std: of each channel, in 0..1; interpolation: of the resize; crop_pct: the share of the shorter side that is cropped.
    """

    model: str
    labels: Sequence[str]
    options: Mapping[str, Any] = field(default_factory=dict)
    input_size: Sequence[int] = (3, 224, 224)
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    interpolation: str = "bicubic"
    crop_pct: float = 0.9

    def build(self) -> nn.Module:
        """The network, with random weights; its ``config`` is this one.

        Raises:
            ValueError: a name that timm does not know, or options that do not fit it.
        """
        options = {"num_classes": len(self.labels), "in_chans": self.input_size[0], **self.options}
        model = build_backbone(self.model, **options)
        model.config = self
        return model


def imagenet_labels() -> list[str]:
    """Short names of the 1000 classes of ImageNet-1K, from timm."""
    info = require("timm.data", "classify").ImageNetInfo()
    return [info.index_to_description(n).partition(",")[0] for n in range(info.num_classes())]


def knows_backbone(name: str) -> bool:
    """Whether timm, with our models, has a network of that name; "hf-hub:OWNER/NAME" and "local-dir:FOLDER" count as known."""
    return ":" in name or _timm().is_model(name.partition(".")[0])


def build_backbone(name: str, **options: Any) -> Any:
    """Build a network of timm by name, with one-line errors: an `nn.Module` with timm's attributes, such as feature_info."""
    timm = _timm()
    if not knows_backbone(name):
        ours = ", ".join(timm.list_models("quadtree*"))
        raise InputError(f"model is {name!r}, expected {ours}, or another name that timm knows")
    try:
        return timm.create_model(name, **{key: _tuples(value) for key, value in options.items()})
    except InputError:
        raise
    except _MISFIT as error:
        if not options:
            raise
        reason = " ".join(str(error).split()) or "see its arguments in timm"
        raise InputError(f"options do not fit {name}: {reason[:300]}") from error


def level_weights(model: nn.Module) -> list[nn.Parameter]:
    """The parameters by which variant "b" weighs its levels."""
    found = (getattr(module, "level_weights", None) for module in model.modules() if isinstance(module, Attention))
    return [weights for weights in found if weights is not None]


def _timm() -> Any:
    """timm with our backbones registered, however it was imported."""
    timm = require("timm", "classify")
    from . import pvt  # noqa: F401

    return timm


def _tuples(value: Any) -> Any:
    """Turn the lists of YAML and JSON into tuples, which timm expects."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
