"""What the tabs share: networks that are loaded once, places for downloads, pictures of a size for a page."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..predict.attention import load_for_attention
from ..viz.drawing import save_picture, shrunk
from .limits import MAX_SIDE, gr

EXAMPLES = Path(__file__).parent / "examples"
NETWORK = {"concurrency_id": "network", "concurrency_limit": 1}  # one run at a time, whoever asks
LIGHT: dict[str, Any] = {"concurrency_id": "light", "concurrency_limit": 4, "show_progress": "hidden"}
_LOADING = threading.Lock()


@lru_cache(maxsize=8)
def _loaded(name: str) -> Any:
    return load_for_attention(name)


def network(name: str) -> Any:
    """The predictor of that name, loaded once."""
    with _LOADING:
        return _loaded(name)


def for_page(image: np.ndarray) -> np.ndarray:
    """An image of at most `MAX_SIDE` pixels."""
    return shrunk(image, MAX_SIDE)[0]


def download(name: str, write: Callable[[Path], Any]) -> str:
    """A file of that name in a folder of its own that nobody can guess, below gradio's; ``write`` fills it."""
    folder = Path(os.environ["GRADIO_TEMP_DIR"])
    path = Path(tempfile.mkdtemp(dir=folder)) / name
    write(path)
    return str(path)


def picture_file(picture: np.ndarray, name: str) -> str:
    """A download of a picture."""
    return download(name, lambda path: save_picture(picture, path))


def snippet() -> Any:
    """Where the Python lines stand that do the same."""
    return gr.Code(language="python", label="The same in Python", interactive=False)
