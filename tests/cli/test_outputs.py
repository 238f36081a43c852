"""What commands may write: never over an input, never over what they did not write, and nothing is lost."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from quadtree_attention.__main__ import main
from quadtree_attention.cli import outputs
from quadtree_attention.cli.outputs import Outputs, remember, was_written
from quadtree_attention.errors import InputError
from quadtree_attention.predict.detection import Detections, Detector
from quadtree_attention.weights.registry import PRETRAINED


@pytest.fixture
def folder(photo, tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(photo).save(root / name)
    return root


@pytest.fixture
def detector(monkeypatch):
    """One box in each image; ``seen`` counts them, and ``stop`` is called with the number of each."""

    class Stub:
        seen = 0

        def stop(self, number):
            pass

    stub = Stub()

    def detect(self, image, *, score=None):
        stub.seen += 1
        stub.stop(stub.seen)
        one = np.ones(1, np.float32)
        return Detections(np.float32([[1, 2, 9, 9]]), ("RBC",), one, np.zeros(1, np.int64), image.shape[:2])

    monkeypatch.setattr(Detector, "detect", detect)
    return stub


def refused(arguments, capsys, *words):
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    for word in words:
        assert word in captured.err
    return captured.err


def test_again_is_fine_and_a_change_is_kept(photos, tmp_path, capsys):
    out, picture = tmp_path / "m.csv", tmp_path / "m.png"
    arguments = ["match", *photos, "-o", out, "--picture", picture]
    for _ in range(2):
        assert main([str(argument) for argument in arguments]) == 0
    out.rename(tmp_path / "n.csv")
    assert main(["match", *photos, "--out", str(tmp_path / "n.csv")]) == 0
    picture.write_bytes(picture.read_bytes() + b"a note of the user's")
    error = refused(arguments, capsys, "add --overwrite")
    assert error.startswith(f"quadtree: {picture} exists, and quadtree did not write it or it was changed since")
    assert picture.read_bytes().endswith(b"user's")
    assert main([*map(str, arguments), "--overwrite"]) == 0
    assert not picture.read_bytes().endswith(b"user's")


def inputs_that_were_lost(folder, tmp_path):
    photo, other = folder / "a.png", folder / "b.png"
    homography = "1 0 0 0 1 0 0 0 1"
    pairs = tmp_path / "h.csv"
    pairs.write_text(f"{photo} {other} {homography}\n")
    weights = tmp_path / "x.safetensors"
    weights.write_bytes(PRETRAINED["tiny"].path.read_bytes())
    return {
        photo: [
            ["classify", folder, "--picture", photo],
            ["evaluate", "homography", pairs, "--models", "sift", "--curve", photo],
            ["evaluate", "homography", folder, "--models", "sift", "--curve", photo],
            ["match", photo, other, "--picture", photo],
            ["stereo", photo, other, "--out", photo],
            ["detect", photo, "--picture", photo],
            ["segment", folder, "--out", folder],
        ],
        pairs: [["evaluate", "homography", pairs, "--models", "sift", "--out", pairs]],
        weights: [["convert", weights, weights]],
    }


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_inputs_are_never_overwritten(folder, tmp_path, capsys, overwrite):
    for path, commands in inputs_that_were_lost(folder, tmp_path).items():
        for command in commands:
            before = path.read_bytes()
            refused([*command, *overwrite], capsys, str(path), "input" if overwrite or "--curve" not in command else "")
            assert path.read_bytes() == before


def test_links_do_not_hide_an_input(folder, tmp_path, capsys):
    (tmp_path / "link.png").hardlink_to(folder / "a.png")
    (tmp_path / "soft.png").symlink_to(folder / "a.png")
    for name in ("link.png", "soft.png"):
        refused(["segment", folder / "a.png", "--picture", tmp_path / name, "--overwrite"], capsys, "which is an input")


def test_what_stands_beside_the_table_is_protected_too(folder, tmp_path, capsys):
    strange = tmp_path / "keep.jsonl"
    strange.write_text("notes\n")
    arguments = ["evaluate", "homography", folder, "--models", "sift", "--limit", "1", "--max-size", "64"]
    arguments += ["--out", tmp_path / "keep.json"]
    refused(arguments, capsys, "keep.jsonl exists, and quadtree did not write it")
    assert strange.read_text() == "notes\n"
    strange.unlink()
    (tmp_path / "keep.predictions").write_text("notes\n")
    refused(arguments, capsys, "keep.predictions is a file, expected a folder of predictions, or nothing")
    assert (tmp_path / "keep.predictions").read_text() == "notes\n"
    (tmp_path / "keep.predictions").unlink()
    for _ in range(2):
        assert main(list(map(str, arguments))) == 0
    assert json.loads((tmp_path / "keep.json").read_text())["results"]


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("segment", ["--out", "x.png", "--picture", "./x.png"]),
        ("segment", ["--out", "new", "--picture", "new"]),
        ("match", ["--out", "x.json", "--picture", "x.json"]),
        ("stereo", ["--out", "x.png", "--picture", "x.png"]),
        ("bench", ["--out", "x.json", "--chart", "x.json"]),
    ],
)
def test_two_options_never_name_one_file(photos, tmp_path, monkeypatch, capsys, command, options):
    monkeypatch.chdir(tmp_path)
    images = {"segment": photos[:1], "bench": []}.get(command, [photos[0]] * 2)
    error = refused([command, *images, *options], capsys)
    assert " are both " in error or "unknown suffix" in error
    assert not list(tmp_path.glob("x.*"))
    assert not (tmp_path / "new").exists()


def test_an_empty_file_holds_nothing_to_lose(photos, tmp_path):
    (tmp_path / "m.npz").touch()  # as mktemp leaves it
    assert main(["match", *photos, "--out", str(tmp_path / "m.npz")]) == 0


@pytest.mark.parametrize("name", ["x.NPZ", "x.JSON", "x.Csv"])
def test_suffixes_in_capitals(photos, tmp_path, name):
    folder = tmp_path / "out"
    folder.mkdir()
    assert main(["match", *photos, "--out", str(folder / name), "--picture", str(folder / "p.JPG")]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["p.JPG", name]
    if name == "x.NPZ":
        with np.load(folder / name) as arrays:
            assert len(arrays["confidence"]) > 20
    with Image.open(folder / "p.JPG") as picture:
        assert picture.format == "JPEG"


def test_weights_and_charts_with_suffixes_in_capitals(tmp_path):
    from quadtree_attention.table import Table
    from quadtree_attention.viz.chart import save_chart

    assert main(["convert", "tiny", str(tmp_path / "x.SAFETENSORS")]) == 0
    assert (tmp_path / "x.SAFETENSORS").stat().st_size > PRETRAINED["tiny"].path.stat().st_size
    row = {"method": "quadtree", "pass": "forward and backward", "tokens": "8x8", "ms": 1.0, "MB": None}
    for name, head in (("c.PNG", b"\x89PNG"), ("c.PDF", b"%PDF"), ("c.SVG", b"<?xml")):
        save_chart(Table([row], {"machine": ""}), tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(head)


def test_stereo_beyond_16_bits(photos, tmp_path, monkeypatch, capsys):
    from quadtree_attention.predict.stereo import Stereo, StereoMatcher

    disparity = np.full((4, 5), 3, np.float32)
    disparity[0, :2] = 256
    found = Stereo(disparity, disparity * 0, disparity * 0 + 1)
    monkeypatch.setattr(StereoMatcher, "match", lambda *_, **__: found)
    Image.new("RGB", (5, 4)).save(tmp_path / "v.png")
    options = ["--picture", "p.png", "--points", "c.ply", "--focal", "9", "--baseline", "1"]
    monkeypatch.chdir(tmp_path)
    assert main(["stereo", "v.png", "v.png", "--out", "d.png", *options]) == 0
    assert "quadtree: 2 of 20 pixels have disparities of 256 and more" in capsys.readouterr().err
    with Image.open("d.png") as image:
        assert np.asarray(image).tolist() == [[0, 0, 768, 768, 768], *[[768] * 5] * 3]
    assert (tmp_path / "p.png").stat().st_size
    assert b"element vertex 20" in (tmp_path / "c.ply").read_bytes()
    assert main(["stereo", "v.png", "v.png", "--out", "d.png", "-q"]) == 0
    assert capsys.readouterr().err == ""


def test_skip_existing(folder, tmp_path, detector, capsys):
    drawn = tmp_path / "drawn"
    arguments = ["detect", str(folder), "--picture", str(drawn), "--skip-existing"]
    assert main(arguments) == 0
    (drawn / "b.png").write_text("someone else's")
    (drawn / "c.png").unlink()
    assert main(arguments) == 0
    assert detector.seen == 3 + 1
    assert (drawn / "b.png").read_text() == "someone else's"
    assert "quadtree: 2 of 3 images have their results already" in capsys.readouterr().err
    assert main(arguments) == 0
    assert detector.seen == 4
    refused(arguments[:-1], capsys, "b.png exists, and quadtree did not write it")
    refused([*arguments, "--out", tmp_path / "r.json"], capsys, "--skip-existing is for results in folders")
    refused(["segment", folder, "--skip-existing"], capsys, "--skip-existing is for results in folders; name one")


def test_a_file_where_a_folder_belongs(folder, tmp_path, detector, capsys):
    (tmp_path / "file.png").write_text("mine")
    assert main(["detect", str(folder), "--picture", str(tmp_path / "file.png" / "more")]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"quadtree: {tmp_path / 'file.png'} is a file, expected a folder, or the name of a new one"
    )


def test_a_mistake_leaves_no_folders(folder, tmp_path, capsys):
    refused(["segment", folder, "--out", tmp_path / "new" / "deep", "--model", "nonsense"], capsys, "unknown model")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_keeps_what_was_done(folder, tmp_path, detector, capsys, number, status):
    detector.stop = lambda count: count == 3 and os.kill(os.getpid(), number)
    assert main(["detect", str(folder), "--out", str(tmp_path / "r.json")]) == status
    assert capsys.readouterr().err.endswith({130: "quadtree: interrupted\n", 143: "quadtree: terminated\n"}[status])
    entries = json.loads((tmp_path / "r.json").read_text())
    assert [entry["file_name"] for entry in entries] == ["a.png", "b.png"]
    detector.seen, detector.stop = 0, lambda count: None
    assert main(["detect", str(folder), "--out", str(tmp_path / "r.json")]) == 0  # it is ours


def test_a_bug_loses_nothing_either(folder, tmp_path, detector):
    def stop(count):
        if count == 2:
            raise KeyError("a bug")

    detector.stop = stop
    with pytest.raises(KeyError, match="a bug"):
        main(["detect", str(folder), "--out", str(tmp_path / "r.json")])
    assert len(json.loads((tmp_path / "r.json").read_text())) == 1


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_ends_in_one_line(folder, tmp_path, detector, monkeypatch, capsys):
    out = tmp_path / "out"
    out.mkdir()
    for owner, name, command in (
        (Path, "write_bytes", ["detect", folder, "-q", "--out", out / "r.json"]),
        (Image.Image, "save", ["detect", folder, "-q", "--picture", out]),
        (np, "savez", ["match", folder / "a.png", folder / "b.png", "--out", out / "m.npz"]),
        (np, "save", ["stereo", folder / "a.png", folder / "b.png", "--out", out / "d.npy"]),
        (Path, "write_bytes", ["stereo", folder / "a.png", folder / "b.png", "--out", out / "d.pfm"]),
        (Path, "write_bytes", ["convert", "tiny", out / "w.safetensors"]),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, full)
            capsys.readouterr()
            assert main(list(map(str, command))) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"quadtree: {out}")
        assert error.endswith(": No space left on device")
        assert list(out.iterdir()) == []


def test_a_full_disk_stops_a_folder_at_once(folder, tmp_path, detector, monkeypatch, capsys):
    monkeypatch.setattr(Image.Image, "save", full)
    assert main(["detect", str(folder), "--picture", str(tmp_path / "drawn")]) == 2
    assert detector.seen == 1
    assert "left out" not in capsys.readouterr().err


def test_the_list_of_what_was_written(tmp_path, written, monkeypatch):
    ours, theirs = tmp_path / "ours.json", tmp_path / "theirs.json"
    theirs.write_text("theirs")
    with pytest.raises(InputError, match=r"theirs\.json exists"), Outputs(()) as claimed:
        claimed.file("--out", theirs, (".json",))
    with Outputs(()) as claimed:
        claimed.file("--out", ours, (".json",))
        ours.write_text("ours")
    assert was_written(ours)
    assert not was_written(theirs)
    monkeypatch.setattr(outputs, "_LONGEST", 100)
    for n in range(9):
        ours.write_text(str(n))
        remember([ours])
        assert was_written(ours)
        assert written.stat().st_size <= 100 + 33
    written.write_bytes(b"\xff damaged")
    assert not was_written(ours)
    monkeypatch.setattr(outputs, "written_list", lambda: Path("/proc/none/written.txt"))
    remember([ours])  # nobody's home can be written to: nothing is remembered
    assert not was_written(ours)


def test_what_is_only_claimed_is_not_ours(tmp_path):
    theirs = tmp_path / "a.json"
    theirs.write_text("theirs")
    with pytest.raises(RuntimeError), Outputs((), overwrite=True) as claimed:  # noqa: PT012
        claimed.file("--out", theirs, (".json",))
        raise RuntimeError
    assert not was_written(theirs)


def run(code, **options):
    return subprocess.run(
        [sys.executable, "-c", f"import sys\nfrom quadtree_attention.__main__ import main\n{code}"],
        check=False,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


FAKE = """
from quadtree_attention.predict.classification import Classification, Classifier
import numpy as np
def classify(self, image, *, top):
    return Classification(("hat",), np.ones(1, np.float32), np.zeros(1, np.int64))
Classifier.classify = classify
"""


def test_nobody_reads_on(folder):
    """As in `quadtree classify FOLDER | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    done = run(f"{FAKE}\nsys.exit(main(['classify', {str(folder)!r}, '-q']))", stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_stdout_is_closed(folder, tmp_path):
    """As in `quadtree classify FOLDER >&-`."""
    Path(os.fsdecode(os.fsencode(folder) + b"/b\xfc.png")).write_bytes((folder / "a.png").read_bytes())
    out = tmp_path / "labels.json"
    code = f"{FAKE}\nsys.exit(main(['classify', {str(folder)!r}, '-q', '--out', {str(out)!r}]))"
    done = run(code, preexec_fn=lambda: os.close(1))
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(out.read_text(encoding="utf-8"))) == 4


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_names_that_the_console_does_not_know(folder, tmp_path, encoding):
    odd = os.fsdecode(os.fsencode(folder) + b"/b\xfc.png")
    for name in (odd, folder / "\u65e5\u672c.png"):
        Path(name).write_bytes((folder / "a.png").read_bytes())
    json_file, csv_file = tmp_path / "labels.json", tmp_path / "labels.csv"
    sheet = tmp_path / "sheet.png"
    code = (
        f"{FAKE}\nstatus = main(['classify', {str(folder)!r}, '-o', {str(json_file)!r}, '--picture', {str(sheet)!r}])"
    )
    code += f"\nsys.exit(status or main(['classify', {str(folder)!r}, '-o', {str(csv_file)!r}]))"
    done = run(code, stdout=subprocess.PIPE, env={**os.environ, "PYTHONIOENCODING": encoding}, encoding=encoding)
    assert done.returncode == 0
    assert "left out" not in done.stderr
    assert "b\\udcfc.png" in done.stdout
    names = [entry["image"] for entry in json.loads(json_file.read_text(encoding="utf-8"))]
    assert odd in names
    assert str(folder / "\u65e5\u672c.png") in names
    assert "b\\udcfc.png,1,hat,1.0" in csv_file.read_text(encoding="utf-8")
