"""Networks built on the operator; each room has its frozen config dataclass beside it.

Importing this package registers the backbones in timm: at once if timm is loaded, and otherwise as soon as it is, so that those who only match
images do not pay for timm.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _RegisterAfterTimm(MetaPathFinder):
    """Finds timm as it would be found anyway; whoever loads it, rather than only looks for it, gets the backbones too."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "timm":
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _RegisteringLoader(spec.loader, self)
                return spec
        return None


class _RegisteringLoader(Loader):
    """timm's own loader, after which the backbones are registered and the hook is gone."""

    def __init__(self, loader: Loader, hook: _RegisterAfterTimm) -> None:
        self._loader, self._hook = loader, hook

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _register()
        if self._hook in sys.meta_path:
            sys.meta_path.remove(self._hook)

    def __getattr__(self, name: str) -> Any:  # get_filename, get_data and whatever else the own one can do
        return getattr(self._loader, name)


def _register() -> None:
    importlib.import_module(".pvt", __name__)


if "timm" in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _RegisterAfterTimm())
