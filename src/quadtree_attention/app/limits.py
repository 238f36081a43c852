"""What a visitor may ask of the machine: sizes of files and images, how many wait, and what errors look like.

Nothing here trusts a file: images are measured by their header before a pixel is decoded, uploads are counted before they are written.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import numpy as np

from ..data.decoding import opened
from ..data.images import read_image
from ..errors import InputError, MissingPackageError, out_of_memory
from ..extras import require

gr = require("gradio", "app")

MAX_FILE = 20 * 2**20  # bytes of an upload
MAX_FOLDER = 2**30  # bytes of all uploads and results that are on disk at one time
MAX_UPLOADS = 8  # at one time
MAX_PIXELS = 24_000_000  # of a photograph
MAX_SIDE = 1200  # pixels of the longer side of what is drawn
MAX_WAITING = 24  # runs in the queue
KEEP = 900  # seconds that uploads, results, and what a visitor's page remembers are kept

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def photograph(label: str, place: str, height: int = 260) -> Any:
    """A place on the page, of that id, for a photograph; its value is the path of the upload in gradio's folder, as gradio has made sure.

    gradio would open the file itself, and a damaged one would end in words that help nobody.
    """
    image = gr.Image(type="filepath", label=label, sources=["upload", "clipboard"], height=height, elem_id=place)
    image.preprocess = lambda payload: None if payload is None else payload.path
    return image


def read_upload(path: str | None, name: str) -> np.ndarray:
    """An uploaded photograph, ``[H, W, 3]`` uint8 RGB.

    Raises:
        ValueError, OSError: there is none, it is too large, or it is not an image.
    """
    if path is None:
        raise InputError(f"{name} is missing, expected a photograph; choose one first")
    with opened(path) as image:
        width, height = image.size
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{Path(path).name} has {width}x{height} pixels, expected at most {MAX_PIXELS // 10**6} million; make it smaller first"
        )
    return read_image(path)


def told(work: Callable[..., Any]) -> Callable[..., Any]:
    """``work`` with a user's mistakes shown in one line, as the command shows them; anything else is a bug, logged and not shown."""

    @functools.wraps(work)
    def run(*arguments: Any, **named: Any) -> Any:
        try:
            return work(*arguments, **named)
        except (InputError, MissingPackageError, OSError) as error:
            text = " ".join(str(error.strerror if isinstance(error, OSError) and error.strerror else error).split())
            for path in (a for a in arguments if isinstance(a, str) and Path(a).is_absolute()):
                text = text.replace(path, Path(path).name)  # visitors know their file by its name
            raise gr.Error(text, print_exception=False) from None
        except Exception as error:
            if out_of_memory(error):
                raise gr.Error("out of memory; choose a smaller size", print_exception=False) from None
            raise

    return run


class UploadLimit:
    """ASGI middleware that refuses uploads before they are read: too large, too many at one time, or no room left in the folder.

    app: what comes next; folder: where uploads and results lie.
    """

    def __init__(self, app: Any, folder: str) -> None:
        self.app, self.folder = app, Path(folder)
        self._active, self._lock = 0, threading.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].rstrip("/").endswith("/upload"):
            await self.app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"")
        if length.isdigit() and int(length) > 3 * MAX_FILE:
            await _refuse(send, 413, f"uploads may have {MAX_FILE // 2**20} MB")
            return
        with self._lock:
            busy = self._active >= MAX_UPLOADS
            self._active += not busy
        if busy:
            await _refuse(send, 503, "too many uploads at one time; try again in a moment")
            return
        try:
            if _folder_size(self.folder) > MAX_FOLDER:
                await _refuse(send, 503, "no room for more uploads; try again in some minutes")
            else:
                await self.app(scope, receive, send)
        finally:
            with self._lock:
                self._active -= 1


async def _refuse(send: Send, status: int, reason: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": reason.encode()})


def _folder_size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # gone meanwhile
            continue
    return total
