"""What a hostile visitor gets."""

import asyncio
import json
import urllib.error
import urllib.request
import zipfile

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the page needs gradio: pip install '.[app]'")

from quadtree_attention.app.limits import MAX_FILE, MAX_UPLOADS, UploadLimit, gr, read_upload, told
from quadtree_attention.app.page import serve
from quadtree_attention.errors import InputError

from .conftest import free_port


def ask(folder, *, length=None, path="/gradio_api/upload", method="POST", inner=None, times=1):
    """Statuses of requests at one time."""

    async def app(scope, receive, send):
        await asyncio.sleep(0.05)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    limit = UploadLimit(inner or app, str(folder))
    headers = [] if length is None else [(b"content-length", str(length).encode())]

    async def one():
        sent = []

        async def send(message):
            sent.append(message)

        await limit({"type": "http", "method": method, "path": path, "headers": headers}, None, send)
        return sent[0]["status"]

    async def all_of_them():
        return await asyncio.gather(*(one() for _ in range(times)))

    return asyncio.run(all_of_them())


def test_a_gigabyte_is_refused_before_it_is_read(tmp_path):
    assert ask(tmp_path, length=2**30) == [413]
    assert ask(tmp_path, length=MAX_FILE) == [200]
    assert ask(tmp_path, length=2**30, path="/other") == [200]


def test_many_uploads_at_one_time_are_refused_and_then_taken_again(tmp_path):
    statuses = ask(tmp_path, times=200)
    assert statuses.count(200) == MAX_UPLOADS
    assert statuses.count(503) == 200 - MAX_UPLOADS


def test_a_full_folder_takes_no_more(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"x" * 100)
    monkeypatch.setattr("quadtree_attention.app.limits.MAX_FOLDER", 50)
    assert ask(tmp_path) == [503]


def test_a_bomb_of_pixels_is_measured_and_not_decoded(tmp_path):
    Image.new("1", (20_000, 8_000)).save(tmp_path / "bomb.png")
    with pytest.raises(ValueError, match=r"bomb.png has 20000x8000 pixels, expected at most 24 million"):
        read_upload(str(tmp_path / "bomb.png"), "A")


def test_a_zip_is_no_photograph(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.jpg", "w") as file:
        file.writestr("a.txt", "0" * 1000)
    with pytest.raises(gr.Error) as caught:
        told(read_upload)(str(tmp_path / "a.jpg"), "A")
    assert caught.value.message == "a.jpg is not an image of a kind that Pillow can read"


def test_bugs_are_not_shown_as_mistakes():
    def broken():
        raise KeyError("ours")

    with pytest.raises(KeyError):
        told(broken)()


def test_a_page_that_does_not_answer_gets_its_sentence(monkeypatch):
    monkeypatch.setattr("gradio.networking.url_ok", lambda url: False)
    with pytest.raises(InputError, match=r"the page does not answer at 127\.0\.0\.1:"), serve("127.0.0.1", free_port()):
        pass


def test_a_port_that_is_taken_gets_its_sentence(address):
    port = int(address.rpartition(":")[2])
    with pytest.raises(InputError, match=f"port {port} cannot be used"), serve("127.0.0.1", port):
        pass


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=../../../etc/passwd",
        "/gradio_api/file=%2Fetc%2Fpasswd",
        "/file=/etc/passwd",
        "/static/../../../../etc/passwd",
        "/assets/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    ],
)
def test_no_file_of_the_machine_can_be_read(address, path):
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(address + path, timeout=120)
    assert caught.value.code in (400, 403, 404)


def test_no_file_of_the_machine_can_be_named_as_an_upload(address):
    """A run whose photograph is said to be /etc/hostname, as the page's own script would call it."""
    with urllib.request.urlopen(f"{address}/config", timeout=120) as answer:
        config = json.load(answer)
    target = next(one for one in config["dependencies"] if len(one["inputs"]) == 6)
    file = {"path": "/etc/hostname", "meta": {"_type": "gradio.FileData"}}
    body = {"fn_index": target["id"], "session_hash": "hostile", "data": [file, file, "tiny", 320, False, False]}
    request = urllib.request.Request(
        f"{address}/gradio_api/queue/join", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120):
        pass
    with urllib.request.urlopen(f"{address}/gradio_api/queue/data?session_hash=hostile", timeout=120) as answer:
        for line in answer:
            event = json.loads(line.removeprefix(b"data: ")) if line.startswith(b"data: ") else {}
            if event.get("msg") == "process_completed":
                assert not event["success"]
                break
        else:
            pytest.fail("no answer")
