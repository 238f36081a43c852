"""quadtree app."""

from __future__ import annotations

import threading
from typing import Annotated

from .app import QUIET, app, note, typer


@app.command("app")
def serve(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    host: Annotated[
        str, typer.Option(help="Address to listen on. 127.0.0.1 is this machine alone; 0.0.0.0 lets others in.")
    ] = "127.0.0.1",
    quiet: QUIET = False,
) -> None:
    """Open a page for the browser: match, stereo, attention, classify, detect, segment. Ctrl-C ends it."""
    from ..app.page import serve as serve_page

    with serve_page(host, port) as address:
        print(address, flush=True)
        note("open this address in a browser; Ctrl-C ends the page and removes all uploads", quiet)
        threading.Event().wait()
