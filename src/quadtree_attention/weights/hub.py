"""Models in folders and in repositories of the Hugging Face Hub, each with model.safetensors, config.json and a card."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from ..extras import require
from ..files import atomic_write

WEIGHTS = "model.safetensors"
PREFIX = "hf-hub:"


def in_hub_or_folder(name_or_path: str | Path) -> bool:
    """Whether this names a repository of the Hub or a folder, not a single file or a known name."""
    return str(name_or_path).startswith(PREFIX) or Path(name_or_path).is_dir()


def find_weights(name_or_path: str | Path) -> Path:
    """The file of weights in a folder, or in a repository "hf-hub:OWNER/NAME", which is downloaded once; "@REVISION" may follow.

    Raises:
        IsADirectoryError: a folder without model.safetensors.
        OSError: a repository that cannot be downloaded.
    """
    name = str(name_or_path)
    if not name.startswith(PREFIX):
        path = Path(name_or_path) / WEIGHTS
        if not path.is_file():
            raise IsADirectoryError(
                f"{name} is a folder without {WEIGHTS}, expected one that save_pretrained wrote, or a file of weights"
            )
        return path
    repository, _, revision = name.removeprefix(PREFIX).partition("@")
    hub = require("huggingface_hub", "hub")
    try:
        with quiet_hub():
            return Path(hub.hf_hub_download(repository, WEIGHTS, revision=revision or None))
    except (OSError, ValueError) as error:
        raise OSError(f"cannot download {WEIGHTS} of {name}: {' '.join(str(error).split())}") from None


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Keep huggingface_hub from printing a line for each attempt; its error says what went wrong."""
    if find_spec("huggingface_hub") is None:
        yield
        return
    logging = require("huggingface_hub.utils.logging", "hub")
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


class HubMixin:
    """`save_pretrained` and `push_to_hub` for a class with a ``model`` whose ``from_pretrained`` takes folders and repositories."""

    _front_matter: ClassVar[Mapping[str, str]] = {"library_name": "quadtree-attention"}  # of the card
    model: nn.Module  # it, or the class, has a ``config``, a dataclass

    def save_pretrained(self, folder: str | Path, *, half: bool = False) -> None:
        """Write weights, configuration and a short card to a folder, which is created if it is missing. An existing card is kept.

        Args:
            folder: the folder; `from_pretrained` loads it.
            half: store parameters as float16.

        Raises:
            ValueError: parameters that float16 cannot hold.
            OSError: a folder that cannot be written to.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        from .files import save

        save(self.model, folder / WEIGHTS, half=half)
        with atomic_write(folder / "config.json") as temporary:
            temporary.write_text(json.dumps(self._hub_config(), indent=2) + "\n", encoding="utf-8")
        if not (folder / "README.md").exists():
            with atomic_write(folder / "README.md") as temporary:
                temporary.write_text(self._card(), encoding="utf-8")

    def push_to_hub(
        self,
        repository: str,
        *,
        half: bool = False,
        private: bool = False,
        card: str | None = None,
        token: str | None = None,
        message: str = "Weights of quadtree-attention",
    ) -> str:
        """Upload the model to the Hugging Face Hub, to a repository that is created if it is missing.

        Args:
            repository: "OWNER/NAME".
            half: store parameters as float16.
            private: whether a new repository is private.
            card: its README.md; by default a short one that says how to load the model.
            token: access token; by default that of ``hf auth login``.
            message: of the commit.

        Returns:
            The address of the commit.

        Raises:
            OSError: the Hub cannot be reached, or refuses.
        """
        hub = require("huggingface_hub", "hub")
        api = hub.HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            if card is not None:
                (Path(folder) / "README.md").write_text(card, encoding="utf-8")
            self.save_pretrained(folder, half=half)
            try:
                api.create_repo(repository, private=private, exist_ok=True)
                return str(api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message))
            except (OSError, ValueError) as error:
                raise OSError(f"cannot push to {repository}: {' '.join(str(error).split())}") from None

    def _hub_config(self) -> Mapping[str, Any]:
        """The content of config.json, for human readers; the file of weights stores it too."""
        config: Any = self.config if hasattr(self, "config") else self.model.config
        return {"model": type(self.model).__name__, **asdict(config)}

    def _card(self) -> str:
        name = type(self).__name__
        fields = "\n".join(f"{field}: {value}" for field, value in self._front_matter.items())
        return f"""---
{fields}
tags: [quadtree-attention]
---

A model of [quadtree-attention](https://arxiv.org/abs/2201.02767); `OWNER/NAME` is this repository:

```python
from quadtree_attention import {name}

model = {name}.from_pretrained("{PREFIX}OWNER/NAME")
```
"""
