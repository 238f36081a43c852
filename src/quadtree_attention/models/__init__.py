"""Networks built on the operator, each with its frozen config dataclass beside it.

Importing this package registers the backbones in timm: at once if timm is loaded, otherwise as soon as it is. Importing timm here would be
simpler, but takes a second, and every `quadtree match` would pay for it, whose network needs none of timm. timm has no entry points for models of
other packages: hence an import hook, which removes itself once timm is loaded.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _WithBackbones(MetaPathFinder):
    """Finds timm as the other finders do, and registers the backbones when it is loaded; only looking for it loads nothing."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "timm":
            return None
        others = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in others if spec is not None), None)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_register(module: ModuleType) -> None:
                load(module)
                sys.meta_path.remove(self)
                _register()

            spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


def _register() -> None:
    importlib.import_module(".pvt", __name__)


if "timm" in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _WithBackbones())
