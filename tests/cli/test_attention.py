"""quadtree attention as a user calls it."""

import json

import numpy as np
import pytest
from PIL import Image

from quadtree_attention.__main__ import main


def test_outputs(photos, tmp_path, capsys):
    files = {name: tmp_path / f"seen.{name}" for name in ("json", "npz", "png")}
    for out in ("json", "npz"):
        arguments = ["attention", *photos, "--at", "60,50", "--out", str(files[out]), "--picture", str(files["png"])]
        assert main([*arguments, "--layer", "2", "--head", "3"]) == 0
    out = capsys.readouterr().out.splitlines()[-5:]
    assert out[0] == "layer 2 of 4, cross-attention, head 3 of 4"
    assert out[1].startswith("level 1: looks at 20 of 20 patches, 8 kept")
    assert "with dense attention" in out[4]
    assert json.loads(files["json"].read_text())["layer"] == 2
    with np.load(files["npz"]) as arrays:
        assert arrays["level1_boxes"].shape == (20, 4)
    with Image.open(files["png"]) as picture:
        assert picture.width > 1000


def test_one_image(photos, capsys):
    assert main(["attention", photos[0], "--at", "3,4", "--model", "segment_tiny"]) == 0
    assert capsys.readouterr().out.startswith("layer 1 of 5, stage 1, block 1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{a}", "{b}"], "Missing option '--at'"),
        (["{a}", "{b}", "--at", "3"], "--at is '3', expected X,Y"),
        (["{a}", "{b}", "--at", "3,x"], "--at is '3,x'"),
        (["{a}", "{b}", "--at", "300,3"], "expected x from 0 to 139"),
        (["{a}", "{b}", "--at", "3,3", "--layer", "9"], "layer is 9, expected 1 to 4"),
        (["{a}", "{b}", "--at", "3,3", "--head", "9"], "head is 9"),
        (["{a}", "{b}", "--at", "3,3", "--model", "segment_tiny"], "two images were given"),
        (["{a}", "--at", "3,3", "--model", "stereo_tiny"], "second image is missing"),
        (["{a}", "missing.png", "--at", "3,3"], "does not exist"),
        (["{a}", "{b}", "--at", "3,3", "--out", "a.csv"], "unknown suffix"),
        (["{a}", "{b}", "--at", "3,3", "--picture", "{a}"], "which is an input"),
    ],
)
def test_mistakes_end_in_one_line(arguments, message, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert main(["attention", *(word.format(a=photos[0], b=photos[1]) for word in arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert message in err
    assert sorted(tmp_path.iterdir()) == before
