"""quadtree match as a user calls it: outputs, kinds of images, and one line for every mistake."""

import json

import numpy as np
import pytest
from PIL import Image

from quadtree_attention.__main__ import main


def test_outputs(photos, tmp_path, capsys):
    for suffix in (".npz", ".json", ".csv"):
        out = tmp_path / f"m{suffix}"
        assert main(["match", *photos, "--out", str(out), "--geometry", "homography"]) == 0
        assert out.stat().st_size > 0
    assert "matches" in capsys.readouterr().out
    with np.load(tmp_path / "m.npz") as arrays:
        assert {"keypoints0", "keypoints1", "confidence", "inliers"} <= set(arrays)
        moved = arrays["keypoints0"] - arrays["keypoints1"]
        assert len(moved) > 20
        assert np.abs(np.median(moved, 0) - (16, 0)).max() < 1.5
    assert len(json.loads((tmp_path / "m.json").read_text())["confidence"]) == len(moved)
    assert len((tmp_path / "m.csv").read_text().splitlines()) == len(moved) + 1
    assert main(["match", *photos, "--picture", str(tmp_path / "p.png")]) == 0
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.width > 200
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_pictures_with_options(photos, tmp_path):
    picture, animation = tmp_path / "p.png", tmp_path / "p.gif"
    options = [
        "--geometry",
        "homography",
        "--inliers-only",
        "--top",
        "20",
        "--lines",
        "thin",
        "--layout",
        "above",
        "--labels",
    ]
    assert main(["match", *photos, *options, "--picture", str(picture), "--animation", str(animation)]) == 0
    with Image.open(picture) as image:
        assert image.height > 240
    with Image.open(animation) as image:
        assert image.n_frames > 5


def test_warped_shows_a_as_b_sees_it(photos, tmp_path, capsys):
    arguments = ["match", *photos, "--geometry", "homography", "--warped", str(tmp_path / "w.png")]
    assert main(arguments) == 0
    first, second, warped = (np.asarray(Image.open(path)).astype(int) for path in (*photos, tmp_path / "w.png"))
    assert warped.shape == second.shape
    error, before = abs(warped - second)[10:-10, 30:100], abs(first[:, :100] - second[:, :100])[10:-10, 30:]
    assert error.mean() < 0.3 * before.mean()
    assert main([*arguments[:3], "--warped", str(tmp_path / "x.png")]) == 2
    assert "--warped needs --geometry homography, got --geometry none" in capsys.readouterr().err


def test_quiet(photos, tmp_path, capsys):
    """No notes on stderr, such as the one on few grey levels."""
    Image.fromarray(np.uint16(np.linspace(0, 4095, 64 * 64)).reshape(64, 64)).save(tmp_path / "deep.png")
    for options, said in (([], True), (["-q"], False)):
        assert main(["match", str(tmp_path / "deep.png"), photos[1], *options]) == 0
        assert ("were stretched" in capsys.readouterr().err) is said


def test_kinds_of_images(photo, tmp_path):
    grey = photo.mean(2).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    images = {
        "grey.png": Image.fromarray(grey),
        "deep.png": Image.fromarray(grey.astype(np.uint16) * 257),
        "alpha.png": Image.fromarray(np.dstack([photo, grey])),
    }
    for name, image in images.items():
        image.save(tmp_path / name)
    Image.fromarray(photo).save(tmp_path / "turned.jpg", exif=exif)
    for name in (*images, "turned.jpg"):
        assert main(["match", str(tmp_path / name), str(tmp_path / "grey.png")]) == 0


def test_nothing_in_common(photo, tmp_path, capsys):
    Image.fromarray(photo).save(tmp_path / "a.png")
    Image.fromarray(np.full((100, 100, 3), 128, np.uint8)).save(tmp_path / "b.png")
    assert main(["match", str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--picture", str(tmp_path / "p.png")]) == 0
    assert int(capsys.readouterr().out.split()[0]) < 20


@pytest.fixture
def bad_files(tmp_path, photo):
    """Files that are not what their names promise, in the folder of the good ones."""
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.png").touch()
    Image.fromarray(photo).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    (tmp_path / "bad.safetensors").write_bytes(b"no weights")


MISTAKES = [  # arguments of quadtree match, {a} and {b} being good images, and what the error must say
    (["{b}", "missing.jpg"], "missing.jpg"),
    (["{a}", "text.jpg"], "not an image"),
    (["{a}", "cut.jpg"], "cut.jpg"),
    (["{a}", "dot.png"], "too small: 1x1"),
    (["{a}", "empty.png"], "empty.png"),
    (["{a}", "."], "."),
    (["{a}", "{b}", "--out", "nowhere/m.npz"], "does not exist"),
    (["{a}", "{b}", "--out", "m.txt"], "unknown suffix"),
    (["{a}", "{b}", "--picture", "m.gif"], "unknown suffix"),
    (["{a}", "{b}", "--model", "huge"], "unknown model"),
    (["{a}", "{b}", "--model", "bad.safetensors"], "safetensors"),
    (["{a}", "{b}", "--max-size", "-5"], "-5"),
    (["{a}", "{b}", "--threshold", "2"], "threshold"),
    (["{a}", "{b}", "--geometry", "sphere"], "geometry"),
    (["{a}", "{b}", "--geometry", "essential"], "--intrinsics"),
    (["{a}"], "see quadtree match --help"),
    (["{a}", "{b}", "--top", "5"], "--top is for --picture"),
    (
        ["{a}", "{b}", "--lines", "thick", "--picture", "m.png"],
        "--lines is 'thick', expected one of normal, thin, none",
    ),
    (["{a}", "{b}", "--layout", "left", "--picture", "m.png"], "--layout is 'left'"),
    (["{a}", "{b}", "--inliers-only", "--picture", "m.png"], "--inliers-only needs --geometry"),
    (["{a}", "{b}", "--animation", "m.gif"], "--animation needs --geometry homography"),
    (["{a}", "{b}", "--animation", "m.mov", "--geometry", "homography"], "unknown suffix"),
    (["{a}", "{b}", "--topk", "8,x"], "--topk is '8,x', expected whole numbers above 0"),
    (["{a}", "{b}", "--topk", "8"], "topk is (8,) for 3 levels, expected 2"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
@pytest.mark.usefixtures("bad_files")
def test_mistakes_end_in_one_line(arguments, message, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert main(["match", *(word.format(a=photos[0], b=photos[1]) for word in arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("quadtree: ")
    assert message in captured.err
    assert sorted(tmp_path.iterdir()) == before


def test_weights_that_do_not_fit(photos, tmp_path, capsys):
    from safetensors import safe_open
    from safetensors.torch import save_file

    from quadtree_attention.weights.registry import PRETRAINED

    with safe_open(PRETRAINED["tiny"].path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in list(file.keys())[1:]}
    save_file(tensors, tmp_path / "short.safetensors", metadata)
    assert main(["match", *photos, "--model", str(tmp_path / "short.safetensors")]) == 2
    assert "weights do not fit the model: 1 missing" in capsys.readouterr().err
