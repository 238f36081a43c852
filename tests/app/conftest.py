"""A page that runs, and a browser that opens it; what is missing leaves these tests out."""

import shutil
import socket
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

EXAMPLES = Path(__file__).parents[2] / "examples"
WAIT = 300_000  # milliseconds: busy machines are slow, and nothing here is about time


@pytest.fixture(scope="session", autouse=True)
def gradio_with_what_it_needs():
    """Leaves everything out where gradio is missing, or stands beside a package that it does not allow."""
    pytest.importorskip("gradio", reason="the page needs gradio: pip install '.[app]'")
    for need in map(Requirement, metadata.requires("gradio") or []):
        if need.marker is None or need.marker.evaluate({"extra": ""}):
            version = metadata.version(need.name)
            if not need.specifier.contains(version, prereleases=True):
                pytest.skip(
                    f"gradio needs {need}, and this is {version}: pip install '.[app]' in an environment of its own"
                )


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="session")
def address():
    from quadtree_attention.app.page import serve

    with serve("127.0.0.1", free_port()) as place:
        yield place.rstrip("/")


@pytest.fixture(scope="session")
def browser():
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="these tests need playwright: pip install '.[browser]'"
    )
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("these tests need Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    page = browser.new_page(viewport={"width": 1200, "height": 1000})
    page.set_default_timeout(WAIT)
    page.goto(address)
    page.wait_for_selector("#match-a")
    yield page
    page.close()
