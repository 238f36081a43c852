import json

import pytest
from PIL import Image

from quadtree_attention.__main__ import main


def test_classify(photos, tmp_path, capsys):
    out, picture = tmp_path / "labels.json", tmp_path / "sheet.png"
    assert main(["classify", *photos, "--top", "2", "--out", str(out), "--picture", str(picture)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == photos[0]
    assert lines[1].endswith(json.loads(out.read_text())[0]["classes"][0]["label"])
    assert len(lines) == 2 * 3
    with Image.open(picture) as sheet:
        assert sheet.width > 2 * 224 or sheet.height > 2 * 224
    assert main(["classify", photos[0], "--out", str(tmp_path / "labels.csv")]) == 0
    assert len((tmp_path / "labels.csv").read_text().splitlines()) == 1 + 5
    assert len(capsys.readouterr().out.splitlines()) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "outdoor"], "outdoor is for matching, expected tiny, classify_tiny, quadtree_b0"),
        (["--model", "nonsense"], "unknown model 'nonsense', expected one of tiny, classify_tiny"),
        (["--model", "no.ckpt"], "no.ckpt does not exist"),
        (["--out", "labels.npz"], "unknown suffix '.npz', expected .json or .csv"),
        (["none.jpg"], "none.jpg does not exist"),
        (["--top", "0"], "--top"),  # the rest of it in the words of whichever parser typer brings
    ],
)
def test_mistakes_of_classify(photos, options, message, capsys):
    assert main(["classify", photos[0], *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
