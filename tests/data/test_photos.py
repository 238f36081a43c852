import numpy as np
import pytest
from PIL import Image

from quadtree_attention.data.images import read_image, to_gray
from quadtree_attention.data.photos import Photographs, read_gray
from quadtree_attention.errors import InputWarning
from quadtree_attention.files import list_photographs


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)
    return path


def test_list_is_sorted_and_searches_folders_below(tmp_path, photo):
    names = ["b.jpg", "a/z.PNG", "a.jpeg", ".hidden.jpg", "notes.txt"]
    for name in names[:4]:
        save(tmp_path / name, photo)
    (tmp_path / "notes.txt").write_text("no photograph")
    found = [path.relative_to(tmp_path).as_posix() for path in list_photographs(tmp_path)]
    assert found == ["a/z.PNG", "a.jpeg", "b.jpg"]


def test_links_to_folders_are_followed_once_and_hidden_folders_are_not(tmp_path, photo):
    inside, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    save(inside / "a.png", photo)
    save(inside / ".ipynb_checkpoints/a.png", photo)
    save(elsewhere / "below/b.png", photo)
    (inside / "link").symlink_to(elsewhere)
    (elsewhere / "below/loop").symlink_to(inside)
    (elsewhere / "broken.png").symlink_to(tmp_path / "none.png")
    found = [path.relative_to(inside).as_posix() for path in list_photographs(inside)]
    assert found == ["a.png", "link/below/b.png"]


def test_photographs_of_kinds_that_are_not_read_are_counted(tmp_path, photo):
    save(tmp_path / "a.png", photo)
    Image.fromarray(photo).save(tmp_path / "b.jfif", "JPEG")
    for name in ("c.HEIC", "d.heic", "e.dng", ".f.dng", "notes.txt"):
        (tmp_path / name).touch()
    with pytest.warns(
        InputWarning, match=r"of kinds that cannot be read are left out: 1 \.dng, 2 \.heic; convert them to"
    ):
        found = list_photographs(tmp_path)
    assert [path.name for path in found] == ["a.png", "b.jfif"]


def test_a_folder_of_such_photographs_alone_is_one_error(tmp_path, recwarn):
    for name in ("c.HEIC", "d.heic"):
        (tmp_path / name).touch()
    with pytest.raises(
        ValueError, match=r"holds only photographs of kinds that cannot be read: 2 \.heic; convert them"
    ):
        list_photographs(tmp_path)
    assert not recwarn.list


def test_list_says_what_is_wrong(tmp_path, photo):
    with pytest.raises(FileNotFoundError, match="does not exist, expected a folder"):
        list_photographs(tmp_path / "missing")
    with pytest.raises(NotADirectoryError, match="is a file, expected a folder"):
        list_photographs(save(tmp_path / "below/a.jpg", photo))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no photographs"):
        list_photographs(tmp_path / "empty")


def test_jpeg_is_read_as_the_slow_way_reads_it(tmp_path, photo):
    path = save(tmp_path / "a.jpg", photo, quality=95, subsampling=0)
    slow = to_gray(read_image(path)) * 255
    assert np.abs(read_gray(path) - slow).max() < 3  # both round


def test_large_jpeg_is_reduced_but_never_below_the_side_asked_for(tmp_path, photo):
    path = save(tmp_path / "a.jpg", np.kron(photo, np.ones((4, 4, 1), np.uint8)))  # 480 x 640
    assert read_gray(path).shape == (480, 640)
    assert read_gray(path, 241).shape == (480, 640)
    assert read_gray(path, 200).shape == (240, 320)
    assert read_gray(path, 33).shape == (60, 80)


def test_rotation_of_exif_and_png_with_alpha(tmp_path, photo):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    assert read_gray(save(tmp_path / "a.jpg", photo, exif=exif)).shape == (160, 120)
    clear = np.dstack([photo, np.zeros(photo.shape[:2], np.uint8)])
    assert (read_gray(save(tmp_path / "a.png", clear)) == 255).all()


def test_broken_and_small_files(tmp_path, photo):
    path = save(tmp_path / "a.jpg", photo)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"a\.jpg"):
        read_gray(path)
    with pytest.raises(ValueError, match="too small: 40x20 pixels"):
        read_gray(save(tmp_path / "b.png", photo[:20, :40]))


def test_drawing(tmp_path, photo):
    paths = [save(tmp_path / f"{name}.png", photo + 10 * k) for k, name in enumerate("abc")]
    photos = Photographs(paths)
    rng = np.random.default_rng(0)
    assert {photos.draw(rng, lambda path: path) for _ in range(40)} == {str(path) for path in paths}
    first, again = ([photos.draw(np.random.default_rng(seed), str) for seed in range(9)] for _ in range(2))
    assert first == again
    np.testing.assert_array_equal(Photographs(paths[:1]).draw(rng), read_image(paths[0]))


def test_broken_photographs_are_skipped_with_a_warning(tmp_path, photo):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    photos = Photographs([broken, save(tmp_path / "sound.png", photo)])
    with pytest.warns(UserWarning, match=r"photograph skipped: .*broken\.jpg"):
        drawn = [photos.draw(np.random.default_rng(seed)) for seed in range(9)]
    assert len(drawn) == 9
    with (
        pytest.warns(UserWarning, match="photograph skipped"),
        pytest.raises(ValueError, match=r"20 photographs in a row cannot be read, the last one .*broken\.jpg"),
    ):
        Photographs([broken]).draw(np.random.default_rng(0))
    with pytest.raises(ValueError, match="got no photographs, expected at least one"):
        Photographs([])
