"""Networks built on the operator; each room has its frozen config dataclass beside it.

Importing this package registers the backbones in timm: at once if timm is loaded, and otherwise as soon as it is, so that those who only match
images do not pay for timm.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _RegisterAfterTimm:
    """Finds timm as it would be found anyway, and registers the backbones once it has been loaded."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "timm":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_register(module: ModuleType) -> None:
                load(module)
                _register()

            spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


def _register() -> Any:
    return importlib.import_module(".pvt", __name__)


if "timm" in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _RegisterAfterTimm())
