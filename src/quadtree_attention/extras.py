"""Optional packages: imported where they are used, and named with the command that installs them when they are missing."""

from importlib import import_module
from typing import Any

from .errors import MissingPackageError


def require(module: str, extra: str) -> Any:
    """Import ``module``, which the extra ``extra`` installs.

    Raises:
        MissingPackageError: the package is missing; the message is one line that says how to install it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise MissingPackageError(
            f"{package} is not installed; install it with: pip install 'quadtree-attention[{extra}]'"
        ) from None
