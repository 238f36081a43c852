"""The command as a user calls it: outputs, kinds of images, and one line for every mistake."""

import json

import numpy as np
import pytest
from PIL import Image

from quadtree_attention.__main__ import main


@pytest.fixture
def photos(tmp_path, photo):
    """Two overlapping photographs as files."""
    paths = []
    for name, part in (("a.png", photo[:, :140]), ("b.png", photo[:, 16:])):
        Image.fromarray(part).save(tmp_path / name)
        paths.append(str(tmp_path / name))
    return paths


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


def mistakes(folder):
    """Arguments of quadtree match, and what the error must say; {a} and {b} are good images."""
    (folder / "text.jpg").write_text("hello")
    (folder / "empty.png").touch()
    whole = (folder / "whole.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    (folder / "bad.safetensors").write_bytes(b"no weights")
    return [
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
        (["{a}"], "quadtree --help"),
        (["{a}", "{b}", "--topk", "8,x"], "--topk is '8,x', expected whole numbers above 0"),
        (["{a}", "{b}", "--topk", "8"], "topk is (8,) for 3 levels, expected 2"),
    ]


@pytest.mark.parametrize("index", range(18))
def test_mistakes_end_in_one_line(index, photos, photo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(photo).save(tmp_path / "whole.jpg")
    arguments, message = mistakes(tmp_path)[index]
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


def test_other_commands(tmp_path, photos, random_weights, capsys):
    assert main(["--version"]) == 0
    assert main(["models"]) == 0
    listing = capsys.readouterr().out
    assert all(name in listing for name in ("tiny", "indoor", "outdoor", "MIT", "Apache-2.0"))
    assert main(["evaluate", "homography", str(tmp_path), "--limit", "1", "--max-size", "128"]) == 0
    assert "sift" in capsys.readouterr().out
    assert main(["guess"]) == 2
    assert "guess" in capsys.readouterr().err


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
        (["--top", "0"], "greater than or equal to 1"),
    ],
)
def test_mistakes_of_classify(photos, options, message, capsys):
    assert main(["classify", photos[0], *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_convert_classifier(tmp_path, photos, capsys):
    import torch

    from quadtree_attention.models.classifier import ClassifierConfig

    small = {
        "depths": [1, 1, 1, 1],
        "embed_dims": [8, 8, 16, 16],
        "num_heads": [1, 1, 2, 2],
        "mlp_ratios": [2, 2, 2, 2],
    }
    config = ClassifierConfig("quadtree_b0", ["day", "night"], small, input_size=[3, 32, 32])
    state = {f"model.{key}": value for key, value in config.build().state_dict().items()}
    torch.save({"state_dict": state, "classifier": vars(config)}, tmp_path / "last.ckpt")
    assert main(["convert", str(tmp_path / "last.ckpt"), str(tmp_path / "last.safetensors"), "--half"]) == 0
    assert "parameters" in capsys.readouterr().out
    assert main(["classify", photos[0], "--model", str(tmp_path / "last.safetensors")]) == 0
    assert {line.split()[-1] for line in capsys.readouterr().out.splitlines()} == {"day", "night"}
