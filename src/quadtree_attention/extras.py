"""Optional packages: imported where they are used; if one is missing, the error names the command that installs it."""

import json
from importlib import import_module, metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

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
        raise MissingPackageError(f"{package} is not installed; install it with: {install_command(extra)}") from None


def install_command(extra: str) -> str:
    """The command that installs an extra of this package, from the same place as the package itself: a folder, or a package index."""
    folder, editable = None, True
    try:
        origin = json.loads(metadata.distribution("quadtree-attention").read_text("direct_url.json") or "{}")
    except metadata.PackageNotFoundError:  # run from its sources, not installed
        folder = Path(__file__).parents[2]
    else:
        if "dir_info" in origin:
            folder = Path(url2pathname(urlsplit(origin["url"]).path))
            editable = origin["dir_info"].get("editable", False)
    if folder is None or not (folder / "pyproject.toml").is_file():
        return f"pip install 'quadtree-attention[{extra}]'"
    return f"pip install {'-e ' * editable}'{folder}[{extra}]'"
