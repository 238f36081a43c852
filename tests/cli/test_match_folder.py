"""quadtree match-folder as a user calls it: a run that was cut off survives mistakes, and each ends in one line."""

import numpy as np
import pytest
from PIL import Image

from quadtree_attention.__main__ import main
from quadtree_attention.predict.matching import Matcher, Matches
from quadtree_attention.weights.storage import save_model


@pytest.fixture
def folder(photo, tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    for k, name in enumerate(("a.png", "b.png", "c.png")):
        Image.fromarray(photo[:, 8 * k : 136 + 8 * k]).save(root / name)
    return root


@pytest.fixture
def matched(monkeypatch):
    """Calls of the matcher, options alone; number ``stop_at`` is interrupted."""

    class Calls(list):
        stop_at = None

    calls = Calls()

    def match(self, image0, image1, **options):
        calls.append(options)
        if len(calls) == calls.stop_at:
            raise KeyboardInterrupt
        return Matches(np.ones((1, 2), np.float32), np.ones((1, 2), np.float32), np.ones(1, np.float32))

    monkeypatch.setattr(Matcher, "match", match)
    return calls


@pytest.fixture
def cut_off(folder, tmp_path, matched, capsys):
    """Arguments of a run that was interrupted in its second pair of three."""
    arguments = ["match-folder", str(folder), "--out", str(tmp_path / "m.h5")]
    matched.stop_at = 2
    assert main(arguments) == 130
    error = capsys.readouterr().err
    assert error == "0/3 pairs\nquadtree: interrupted\n"
    matched.stop_at = None
    matched.clear()
    return arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "tny"], "unknown model 'tny', expected one of tiny, "),
        (["--threshold", "5"], "threshold is 5.0, expected 0..1"),
        (["--topk", "16,x"], "--topk is '16,x', expected whole numbers"),
        (["--topk", "16,8,4,2"], "topk"),
        (["--device", "abacus"], "device 'abacus' cannot be used"),
        (["--max-size", "20"], "max_size is 20, expected at least 32 pixels"),
        (
            ["--max-size", "64"],
            "m.h5.partial holds 1 pair matched with other settings (max_size); remove it, or choose",
        ),
        (["--threshold", "0.5"], "holds 1 pair matched with other settings (threshold); remove it"),
        (["--no-align"], "holds 1 pair matched with other settings (align); remove it"),
        (["--topk", "8,8"], "holds 1 pair matched with other settings (topk); remove it"),
    ],
)
def test_a_mistake_loses_nothing(cut_off, matched, tmp_path, capsys, options, message):
    before = (tmp_path / "m.h5.partial").read_bytes()
    assert main([*cut_off, *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("quadtree: ")
    assert message in error
    assert error.count("\n") == 1
    assert (tmp_path / "m.h5.partial").read_bytes() == before
    assert matched == []
    assert main(cut_off) == 0
    assert len(matched) == 2
    assert ": 3 images, 3 pairs, 3 matches" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features.h5", "images", "m.h5"]


def test_another_version(cut_off, capsys, monkeypatch):
    monkeypatch.setattr("quadtree_attention.predict.folder.__version__", "9.9")
    assert main(cut_off) == 2
    assert "other settings (version)" in capsys.readouterr().err


def test_weights_that_changed_behind_their_name(folder, tmp_path, matched, capsys):
    matcher = Matcher.from_pretrained("tiny", device="cpu")
    save_model(matcher.model, tmp_path / "own.safetensors")
    arguments = ["match-folder", str(folder), "--out", str(tmp_path / "m.h5"), "--model", f"{tmp_path}/own.safetensors"]
    matched.stop_at = 2
    assert main(arguments) == 130
    next(matcher.model.parameters()).data += 1
    save_model(matcher.model, tmp_path / "own.safetensors")
    capsys.readouterr()
    assert main(arguments) == 2
    assert "other settings (model)" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--model", "tny"], ["--max-size", "20"], ["--device", "abacus"]])
def test_a_mistake_leaves_nothing(folder, tmp_path, options):
    assert main(["match-folder", str(folder), "--out", str(tmp_path / "m.h5"), *options]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


@pytest.mark.parametrize(("options", "align"), [([], True), (["--no-align"], False)])
def test_align(folder, tmp_path, matched, options, align):
    assert main(["match-folder", str(folder), "--out", str(tmp_path / "m.h5"), *options]) == 0
    assert [call["align"] for call in matched] == [align] * 3


def test_an_error_has_a_line_of_its_own(folder, tmp_path, monkeypatch, capsys):
    def match(*_, **__):
        raise OSError("the disk is on fire")

    monkeypatch.setattr(Matcher, "match", match)
    assert main(["match-folder", str(folder), "--out", str(tmp_path / "m.h5")]) == 2
    assert capsys.readouterr().err == "0/3 pairs\nquadtree: the disk is on fire\n"
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
