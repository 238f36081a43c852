"""What commands on many images share: finding, skipping, naming results."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from quadtree_attention.__main__ import main
from quadtree_attention.cli.images import each_image, find_images, result_paths
from quadtree_attention.errors import InputError


@pytest.fixture
def folder(tmp_path):
    """Two images, one of them in a folder, a broken one, and what is no image."""
    (tmp_path / "in" / "more").mkdir(parents=True)
    for name in ("b.png", "more/a.JPG"):
        Image.new("RGB", (40, 30), "red").save(tmp_path / "in" / name)
    (tmp_path / "in" / "broken.jpg").write_text("no image")
    (tmp_path / "in" / "notes.txt").write_text("no image")
    (tmp_path / "in" / ".hidden.png").write_text("no image")
    return tmp_path / "in"


def test_folders_are_walked_by_name(folder):
    found = find_images([str(folder / "b.png"), str(folder)])
    assert [str(image.name) for image in found] == ["b.png", "broken.jpg", os.path.join("more", "a.JPG")]  # noqa: PTH118
    assert found[0].path == folder / "b.png"
    with pytest.raises(FileNotFoundError, match=r"none\.png does not exist, expected an image file or a folder"):
        find_images([str(folder), str(folder / "none.png")])
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no photographs"):
        find_images([str(folder / "empty")])


def test_broken_ones_are_left_out_and_told(folder, capsys):
    seen = []

    def work(file, image):
        seen.append((file.name.name, image.shape))
        if file.name.name == "b.png":
            raise InputError("too red")

    assert each_image(find_images([str(folder)]), work) == 1
    assert seen == [("b.png", (30, 40, 3)), ("a.JPG", (30, 40, 3))]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"quadtree: left out: {folder / 'b.png'}: too red\n" in captured.err
    assert f"quadtree: left out: {folder / 'broken.jpg'} is not an image" in captured.err
    assert "3/3 images" in captured.err
    assert each_image(find_images([str(folder / "more"), str(folder / "more" / "a.JPG")]), work) == 0
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match="too red"):
        each_image(find_images([str(folder / "b.png")]), work)
    with pytest.raises(ValueError, match="is not an image"):
        each_image(find_images([str(folder / "broken.jpg")]), work)


def test_results_are_named_as_the_images(folder, tmp_path):
    images = find_images([str(folder)])
    out = tmp_path / "new" / "out"
    paths = result_paths(images, str(out), (".png", ".jpg"))
    assert paths == [out / "b.png", out / "broken.png", out / "more" / "a.png"]
    assert not out.exists()
    one = find_images([str(folder / "b.png")])
    assert result_paths(one, str(tmp_path / "c.jpg"), (".png", ".jpg")) == [tmp_path / "c.jpg"]
    assert result_paths(one, str(out), (".png", ".jpg")) == [out / "b.png"]
    (tmp_path / "file").touch()
    for given, target, error, message in (
        (images, "c.png", ValueError, "is one file for 3 images"),
        (one, "c.gif", ValueError, "unknown suffix '.gif', expected .png or .jpg, or the name of a folder"),
        (one, "none/c.png", FileNotFoundError, "does not exist; create it first"),
        (images, "file", NotADirectoryError, "is a file, expected a folder for the results of 3"),
    ):
        with pytest.raises(error, match=message):
            result_paths(given, str(tmp_path / target), (".png", ".jpg"))


def test_images_of_one_stem_have_results_of_their_own(folder, tmp_path):
    (folder / "b.jpg").write_bytes((folder / "b.png").read_bytes())
    paths = result_paths(find_images([str(folder)]), str(tmp_path / "out"), (".png",))
    names = [path.relative_to(tmp_path / "out").as_posix() for path in paths]
    assert names == ["b.jpg.png", "b.png.png", "broken.png", "more/a.png"]
    (folder / "b.jpg.webp").write_bytes((folder / "b.png").read_bytes())
    with pytest.raises(InputError, match=r"b\.jpg and .*b\.jpg\.webp would both be .*b\.jpg\.png; rename one"):
        result_paths(find_images([str(folder)]), str(tmp_path / "out"), (".png",))


def test_images_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for camera in ("cam0", "cam1"):
        (tmp_path / camera).mkdir()
        Image.new("RGB", (40, 30)).save(tmp_path / camera / "0001.jpg")
    for given in ("cam0", "cam1"), ("cam0/0001.jpg", "cam1/0001.jpg"), ("cam0", "cam1/0001.jpg"):
        found = find_images([str(tmp_path / one) for one in given])
        assert [image.name.as_posix() for image in found] == ["cam0/0001.jpg", "cam1/0001.jpg"]


def test_patterns_are_expanded_where_the_shell_left_them(folder):
    assert [image.path.name for image in find_images([str(folder / "*.png")])] == ["b.png"]
    assert [image.path.name for image in find_images([str(folder / "**" / "*.JPG")])] == ["a.JPG"]
    with pytest.raises(FileNotFoundError, match=r"\*\.gif matches no file"):
        find_images([str(folder / "*.gif")])
    (folder / "c[1].png").write_bytes((folder / "b.png").read_bytes())
    assert [image.path.name for image in find_images([str(folder / "c[1].png")])] == ["c[1].png"]


def test_classify_a_folder(folder, tmp_path, capsys):
    out, sheet = tmp_path / "labels.csv", tmp_path / "sheet.png"
    assert main(["classify", str(folder), "--top", "1", "--out", str(out), "--picture", str(sheet)]) == 1
    captured = capsys.readouterr()
    assert [Path(line).name for line in captured.out.splitlines()[::2]] == ["b.png", "a.JPG"]
    assert "broken.jpg" in captured.err
    assert len(out.read_text().splitlines()) == 1 + 2
    assert np.asarray(Image.open(sheet)).ndim == 3


def test_what_is_odd_is_said_in_one_line(folder, tmp_path, capsys):
    """Kinds of photographs that are passed over, and few grey levels."""
    (folder / "broken.jpg").unlink()
    (folder / "c.heic").touch()
    Image.fromarray(np.uint16(np.linspace(0, 4095, 1200)).reshape(30, 40)).save(folder / "more" / "deep.png")
    assert main(["classify", str(folder), "--out", str(tmp_path / "out.json")]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith(f"quadtree: {folder}")]
    assert said == [
        f"quadtree: {folder}: photographs of kinds that cannot be read are left out: 1 .heic; convert them to .jpg or .png",
        f"quadtree: {folder / 'more' / 'deep.png'}: values from 3.597 to 4090.4 fill little of 0..65535, they were stretched",
    ]
