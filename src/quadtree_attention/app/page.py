"""The whole page, and the server behind it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import InputError
from ..extras import require
from . import attention, match, recognition, stereo
from .limits import KEEP, MAX_FILE, MAX_WAITING, UploadLimit, gr

TABS = {
    "Match": match.tab,
    "Stereo": stereo.tab,
    "Attention": attention.tab,
    "Classify": recognition.classify_tab,
    "Detect": recognition.detect_tab,
    "Segment": recognition.segment_tab,
}


def build() -> Any:
    """The page, a `gradio.Blocks`; `serve` gives it a place to run."""
    with gr.Blocks(title="quadtree-attention", analytics_enabled=False, delete_cache=(60, KEEP)) as page:
        gr.Markdown(
            "# quadtree-attention\nAttention for images at linear cost. Photographs stay on the machine that runs this page, for about "
            f"{KEEP // 60} minutes."
        )
        for name, tab in TABS.items():
            with gr.Tab(name, id=name):
                tab()
    page.queue(max_size=MAX_WAITING, default_concurrency_limit=1)
    return page


@contextmanager
def serve(host: str = "127.0.0.1", port: int = 7860) -> Iterator[str]:
    """Inside, the page runs; gives its address. Uploads and results lie in a folder that is removed at the end.

    Raises:
        InputError: the port is taken, or the page does not answer.
    """
    with tempfile.TemporaryDirectory(prefix="quadtree-app-") as folder:
        before = os.environ.get("GRADIO_TEMP_DIR")
        os.environ["GRADIO_TEMP_DIR"] = folder  # gradio's own switch, read when the page is built
        page = build()
        try:
            middleware = require("starlette.middleware", "app").Middleware(UploadLimit, folder=folder)
            # Fonts of the visitor's machine: no request goes to anyone's server.
            fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
            try:
                _, address, _ = page.launch(
                    server_name=host,
                    server_port=port,
                    share=False,
                    quiet=True,
                    prevent_thread_lock=True,
                    max_file_size=MAX_FILE,
                    max_threads=8,
                    state_session_capacity=16,
                    show_error=False,
                    ssr_mode=False,
                    footer_links=[],
                    enable_monitoring=False,
                    theme=gr.themes.Base(**fonts),
                    app_kwargs={"middleware": [middleware], "docs_url": None, "redoc_url": None},
                )
            except OSError as error:
                raise InputError(
                    f"port {port} cannot be used, expected a free one; choose another with --port ({error})"
                ) from None
            except ValueError as error:  # gradio asks its own page for an answer, and waits for three seconds
                if "localhost is not accessible" not in str(error):
                    raise
                raise InputError(
                    f"the page does not answer at {host}:{port}; try again when the machine is less busy, or set NO_PROXY=127.0.0.1"
                ) from None
            yield address
        finally:
            page.close(verbose=False)
            if before is None:
                os.environ.pop("GRADIO_TEMP_DIR", None)
            else:
                os.environ["GRADIO_TEMP_DIR"] = before
