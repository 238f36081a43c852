"""The kinds of networks that files can hold: the configuration of each, the function that builds it, and the command that takes it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import nn

from ..models.releases import Task


@dataclass(frozen=True)
class Kind:
    """One kind of network.

    name: in files; task: in the table of weights; module: the module with ``config`` and ``build``; config: the class of its configuration, a frozen
    dataclass; build: makes a network with random weights from a configuration; command: the command that takes such a file.
    """

    name: str
    task: Task
    module: str
    config: str
    build: str
    command: str

    def config_class(self) -> type[Any]:
        """The class of the configuration."""
        return self._get(self.config)

    def network(self, config: Any) -> nn.Module:
        """A network of that configuration, with random weights."""
        return self._get(self.build)(config)

    def _get(self, name: str) -> Any:
        found: Any = import_module(f"..models.{self.module}", __package__)
        for part in name.split("."):
            found = getattr(found, part)
        return found


KINDS = {
    kind.name: kind
    for kind in (
        Kind("matcher", "matching", "loftr", "LoFTRConfig", "LoFTR", "quadtree match"),
        Kind("stereo", "stereo", "sttr", "STTRConfig", "STTR", "quadtree stereo"),
        Kind(
            "classifier",
            "classification",
            "classifier",
            "ClassifierConfig",
            "ClassifierConfig.build",
            "quadtree classify",
        ),
        Kind("detector", "detection", "detection", "DetectorConfig", "build_detector", "quadtree detect"),
        Kind("segmenter", "segmentation", "segmentation", "SegmenterConfig", "SemanticFPN", "quadtree segment"),
        # A classifier without a head, as inside a detector: to start a training from.
        Kind("backbone", "classification", "classifier", "ClassifierConfig", "ClassifierConfig.build", "quadtree fit"),
    )
}


def kind_of(config: Any) -> Kind:
    """The kind of network that a configuration is of."""
    name = type(config).__name__
    if name == "ClassifierConfig" and not config.labels:
        return KINDS["backbone"]
    return next(kind for kind in KINDS.values() if kind.config == name)


def kind_for(task: str) -> Kind:
    """The kind of network that a task uses."""
    return next(kind for kind in KINDS.values() if kind.task == task)
