"""quadtree match-folder as a user calls it: a run that was cut off survives mistakes, and each ends in one line."""

import os
import shutil
import sqlite3
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from quadtree_attention import Matcher, Matches
from quadtree_attention.__main__ import main
from quadtree_attention.weights import save


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
        (["--device", "abacus"], "device 'abacus' is unknown"),
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
    save(matcher.model, tmp_path / "own.safetensors")
    arguments = ["match-folder", str(folder), "--out", str(tmp_path / "m.h5"), "--model", f"{tmp_path}/own.safetensors"]
    matched.stop_at = 2
    assert main(arguments) == 130
    next(matcher.model.parameters()).data += 1
    save(matcher.model, tmp_path / "own.safetensors")
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


def images_of(path):
    base = sqlite3.connect(path)
    try:
        return {name for (name,) in base.execute("SELECT name FROM images")}
    finally:
        base.close()


def test_somebody_elses_file_stays(folder, tmp_path, matched, capsys):
    for name in ("d.db", "m.h5"):
        (tmp_path / name).write_bytes(b"somebody's")
        assert main(["match-folder", str(folder), "--out", str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert f"{name} exists, and quadtree did not write it" in error
        assert "--overwrite" in error
        assert error.count("\n") == 1
        assert (tmp_path / name).read_bytes() == b"somebody's"
        assert matched == []
        assert main(["match-folder", str(folder), "--out", str(tmp_path / name), "--overwrite"]) == 0
        assert main(["match-folder", str(folder), "--out", str(tmp_path / name)]) == 0  # ours now
        matched.clear()
        capsys.readouterr()


def test_a_database_whose_process_was_killed(folder, tmp_path, matched, capsys):
    """What it left in -wal would come over the new database when that is opened."""
    path = tmp_path / "d.db"
    assert main(["match-folder", str(folder), "--out", str(path)]) == 0
    code = (
        "import os, sqlite3, sys\nbase = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "base.execute('PRAGMA journal_mode = WAL')\nbase.execute('UPDATE images SET name = name || \".old\"')\n"
        "os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    assert (tmp_path / "d.db-wal").stat().st_size
    capsys.readouterr()
    assert main(["match-folder", str(folder), "--out", str(path)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "d.db-wal").stat().st_size
    assert main(["match-folder", str(folder), "--out", str(path), "--overwrite"]) == 0
    assert images_of(path) == {"a.png", "b.png", "c.png"}
    assert sorted(one.name for one in tmp_path.iterdir()) == ["d.db", "images"]


def test_no_image_is_replaced(folder, tmp_path, matched, capsys):
    shutil.copy(folder / "a.png", folder / "x.db")
    assert main(["match-folder", str(folder), "--out", str(folder / "x.db")]) == 2
    assert "quadtree did not write it" in capsys.readouterr().err


@pytest.mark.parametrize("cameras", ["single", "per-folder"])
def test_two_sizes_of_one_camera(folder, tmp_path, matched, capsys, cameras):
    (folder / "sub").mkdir()
    (folder / "c.png").rename(folder / "sub" / "c.png")
    with Image.open(folder / "b.png") as image:
        image.resize((90, 80)).save(folder / "sub" / "d.png")
    assert main(["match-folder", str(folder), "--out", str(tmp_path / "d.db"), "--cameras", cameras]) == 2
    one = "a.png" if cameras == "single" else "sub/c.png"
    expected = f"cameras is {cameras}, but {one} has 136x120 pixels and sub/d.png 90x80, expected one size"
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert matched == []
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
    assert main(["match-folder", str(folder), "--out", str(tmp_path / "d.db"), "--cameras", "auto"]) == 0


@pytest.mark.parametrize("out", ["m.h5", "d.db"])
def test_a_name_that_is_not_utf_8(folder, tmp_path, matched, capsys, out):
    odd = folder / os.fsdecode(b"b\xfc.png")
    try:
        shutil.copy(folder / "b.png", odd)
    except OSError:
        pytest.skip("this file system has no such names")
    assert main(["match-folder", str(folder), "--out", str(tmp_path / out)]) == 1
    captured = capsys.readouterr()
    assert "its name is not UTF-8; rename it" in captured.err
    assert ": 3 images, 3 pairs," in captured.out


def test_a_full_disk_loses_nothing(folder, tmp_path, matched, capsys, monkeypatch):
    """Of the file of matches."""
    from quadtree_attention.predict.match_store import MatchStore

    add = MatchStore.add

    def full(self, pair, stamp, matches):
        if len(matched) == 2:
            self._base.execute("PRAGMA max_page_count = 1")
            matches = matches._replace(points0=np.ones((9999, 2)))
        add(self, pair, stamp, matches)

    monkeypatch.setattr(MatchStore, "add", full)
    arguments = ["match-folder", str(folder), "--out", str(tmp_path / "m.h5")]
    assert main(arguments) == 2
    assert "m.h5.partial: No space left on device" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "m.h5.partial"]
    monkeypatch.setattr(MatchStore, "add", add)
    matched.clear()
    assert main(arguments) == 0
    assert len(matched) == 2


def test_a_disk_that_is_full_when_the_database_is_written(folder, tmp_path, matched, capsys, monkeypatch):
    import pycolmap

    real = pycolmap.import_images

    def full(path, *arguments, **options):
        if tmp_path in path.parents:
            path.with_name(path.name + "-wal").write_bytes(b"x")
            raise RuntimeError("No registered database factory succeeded.")
        real(path, *arguments, **options)

    monkeypatch.setattr(pycolmap, "import_images", full)
    arguments = ["match-folder", str(folder), "--out", str(tmp_path / "d.db")]
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=0))
    assert main(arguments) == 2
    assert f"quadtree: {tmp_path / 'd.db'}: No space left on device" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.db.partial", "images"]
    monkeypatch.undo()
    count = len(matched)
    monkeypatch.setattr(Matcher, "match", None)  # not needed any more
    assert main([*arguments, "--overwrite"]) == 0
    assert count == 3


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE settings SET content = 'x'",
        "UPDATE settings SET content = NULL",
        "UPDATE settings SET content = '[1]'",
        "UPDATE settings SET content = 7",
        "UPDATE matches SET points0 = x'00'",
        "UPDATE matches SET points0 = 'text'",
        "UPDATE matches SET confidence = NULL",
        "UPDATE matches SET confidence = x'0000c07f'",
        "UPDATE matches SET points1 = x'00000000'",
        "CREATE TABLE theirs (x)",
        "DROP TABLE settings",
        "ALTER TABLE matches RENAME COLUMN stamp TO stump",
        "DROP TABLE matches",
    ],
)
def test_a_partial_file_of_other_contents(cut_off, tmp_path, matched, capsys, change):
    base = sqlite3.connect(tmp_path / "m.h5.partial")
    base.execute(change)
    base.commit()
    base.close()
    before = (tmp_path / "m.h5.partial").read_bytes()
    assert main(cut_off) == 2
    error = capsys.readouterr().err.splitlines()
    assert "m.h5.partial" in error[-1]
    assert error[-1].endswith("remove it")
    assert "Traceback" not in "".join(error)
    if "matches SET" not in change:
        assert (tmp_path / "m.h5.partial").read_bytes() == before
