import pickle
import re

import cv2
import numpy as np
import pytest
from PIL import Image

from quadtree_attention.data.arrays import read_arrays
from quadtree_attention.data.matching import pairs
from quadtree_attention.errors import InputError
from quadtree_attention.evaluation.synthetic import SyntheticHomographies

H = np.array([[0.9, -0.1, 20], [0.1, 1.1, -5], [1e-4, 5e-5, 1]])
H_WORDS = " ".join(map(str, H.ravel()))


def image(path, size=(64, 48)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)
    return path


def one_line(error):
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture
def folder(tmp_path):
    image(tmp_path / "a.png")
    image(tmp_path / "b c.png")
    return tmp_path


class TestHomographyList:
    def test_numbers_and_files(self, folder):
        np.savetxt(folder / "H.txt", H)
        np.save(folder / "H.npy", H)
        storage = cv2.FileStorage(str(folder / "H.xml"), cv2.FILE_STORAGE_WRITE)
        storage.write("H13", H)
        storage.release()
        lines = [
            "# a comment",
            "",
            f'a.png "b c.png" {H_WORDS}',
            *(f"a.png a.png H.{s}" for s in ("txt", "npy", "xml")),
        ]
        (folder / "list.txt").write_text("\n".join(lines))
        found = pairs.homography_list(folder / "list.txt")
        assert len(found) == 4
        assert found[0].image1 == folder / "b c.png"
        for pair in found:
            np.testing.assert_allclose(pair.homography, H, rtol=1e-12)

    def test_another_root(self, folder, tmp_path_factory):
        path = tmp_path_factory.mktemp("lists") / "list.txt"
        path.write_text(f"a.png a.png {H_WORDS}")
        assert pairs.homography_list(path, folder)[0].image0 == folder / "a.png"

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("a.png a.png 1 2 3", "list.txt:2: 5 entries, expected 11"),
            (f"a.png x.png {H_WORDS}", "list.txt:2: .*x.png does not exist"),
            ("a.png a.png x.txt", "list.txt:2: .*x.txt does not exist"),
            ("a.png a.png 1 0 0 0 1 0 0 zero 1", "list.txt:2: could not convert.*zero"),
            ("a.png a.png 1 0 0 0 1 0 0 nan 1", "list.txt:2: numbers that are not finite"),
            ("a.png a.png 0 0 0 0 0 0 0 0 0", "list.txt:2: not a homography"),
            ("a.png a.png a.png", "a.png: not a homography"),
            ('a.png "a.png', "list.txt:2: 2 entries, expected 11"),
        ],
    )
    def test_a_malformed_line_is_named(self, folder, line, message):
        (folder / "list.txt").write_text(f"# first\n{line}\n")
        with pytest.raises((ValueError, OSError)) as error:
            pairs.homography_list(folder / "list.txt")
        assert re.search(message, one_line(error))

    def test_empty_missing_and_binary_lists(self, folder):
        (folder / "empty.txt").write_text("# nothing\n")
        with pytest.raises(ValueError, match="no pairs in it"):
            pairs.homography_list(folder / "empty.txt")
        with pytest.raises(FileNotFoundError, match=r"none\.txt cannot be read"):
            pairs.homography_list(folder / "none.txt")
        with pytest.raises(ValueError, match="is not a text file"):
            pairs.homography_list(folder / "a.png")


class TestHPatches:
    @pytest.fixture
    def sequences(self, tmp_path):
        for number, size in (("1", (96, 64)), ("2", (64, 64))):
            image(tmp_path / "v_wall" / f"{number}.ppm", size)
        np.savetxt(tmp_path / "v_wall" / "H_1_2", H)
        return tmp_path

    def test_homographies_follow_the_resizing(self, sequences):
        (pair,) = pairs.hpatches(sequences, short_side=32)
        assert (pair.name, pair.size0, pair.size1) == ("v_wall/1-2", (48, 32), (32, 32))
        # both are halved: the centre of the pixels 0 and 1 becomes that of pixel 0
        x = np.array([10.0, 20.0, 1])
        there = H @ (2 * x + [0.5, 0.5, -1])
        np.testing.assert_allclose(
            (pair.homography @ x)[:2] / (pair.homography @ x)[2], there[:2] / there[2] / 2 - 0.25
        )

    def test_as_they_are(self, sequences):
        (pair,) = pairs.hpatches(sequences, short_side=None)
        assert pair.size0 is None
        np.testing.assert_allclose(pair.homography, H)

    def test_missing_parts(self, sequences, tmp_path):
        (sequences / "v_wall" / "2.ppm").unlink()
        with pytest.raises(FileNotFoundError, match=r"image 2\.ppm is missing, needed for H_1_2"):
            pairs.hpatches(sequences)
        (sequences / "v_wall" / "H_1_2").unlink()
        with pytest.raises(FileNotFoundError, match="no files H_1_2"):
            pairs.hpatches(sequences)
        with pytest.raises(ValueError, match="no folders i_"):
            pairs.hpatches(sequences / "v_wall")


class TestSynthetic:
    @pytest.fixture
    def photos(self, tmp_path, photo):
        Image.fromarray(photo).save(tmp_path / "p.png")
        Image.fromarray(photo[:, ::-1]).save(tmp_path / "q.png")
        return tmp_path

    def test_same_seed_same_pairs(self, photos):
        first, again, other = (list(SyntheticHomographies(photos, 3, seed)) for seed in (1, 1, 2))
        assert [pair.name for pair in first] == ["0000 p.png", "0001 q.png", "0002 p.png"]
        for a, b, c in zip(first, again, other, strict=True):
            np.testing.assert_array_equal(a.image1, b.image1)
            np.testing.assert_array_equal(a.homography, b.homography)
            assert not np.allclose(a.homography, c.homography)

    def test_the_homography_is_that_of_the_images(self, photos):
        for pair in SyntheticHomographies(photos, 6):
            height, width = pair.image0.shape[:2]
            warped = cv2.warpPerspective(pair.image0, pair.homography, (width, height))
            seen = cv2.warpPerspective(np.ones((height, width), np.uint8), pair.homography, (width, height)) > 0
            likeness = np.corrcoef(warped[seen].ravel(), pair.image1[seen].ravel())[0, 1]
            shifted = np.corrcoef(np.roll(warped, 9, 1)[seen].ravel(), pair.image1[seen].ravel())[0, 1]
            assert likeness > 0.9
            assert likeness > shifted

    def test_views_lie_inside_the_photograph(self, photos):
        for pair in SyntheticHomographies(photos, 8):
            height, width = pair.image0.shape[:2]
            corners = np.array([[[0, 0]], [[width - 1, 0]], [[width - 1, height - 1]], [[0, height - 1]]], np.float64)
            view = pair.homography if int(pair.name[:4]) % 2 else np.linalg.inv(pair.homography)
            inside = cv2.perspectiveTransform(corners, view).reshape(-1, 2)
            assert (inside > -0.01).all()
            assert (inside < [width - 0.99, height - 0.99]).all()


class TestPoseList:
    NUMBERS = "100 0 32 0 100 24 0 0 1 90 0 32 0 90 24 0 0 1 1 0 0 .1 0 1 0 .2 0 0 1 .3 0 0 0 1"

    def test_fields(self, folder):
        (folder / "list.txt").write_text(f"a.png a.png 0 3 {self.NUMBERS}\n")
        (pair,) = pairs.pose_list(folder / "list.txt")
        assert (pair.turns0, pair.turns1) == (0, 3)
        assert (pair.K0[0, 0], pair.K1[1, 1], pair.K1[0, 2]) == (100, 90, 32)
        np.testing.assert_array_equal(pair.T_0to1[:3, 3], [0.1, 0.2, 0.3])

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("a.png a.png 0 0 1 2", "list.txt:1: 6 entries, expected 38"),
            (f"a.png a.png 0 4 {NUMBERS}", "quarter turns"),
            (f"a.png a.png 0 0 {'0' + NUMBERS[3:]}", "list.txt:1: K0: no camera, expected .* focal lengths above 0"),
            (f"a.png a.png 0 0 {NUMBERS.replace('1 0 0 .1', '0 0 0 .1')}", "list.txt:1: T_0to1: no pose"),
            (
                f"a.png a.png 0 0 {NUMBERS.replace('.1 0 1 0 .2 0 0 1 .3', '0 0 1 0 0 0 0 1 0')}",
                "both cameras stand in one place",
            ),
        ],
    )
    def test_malformed(self, folder, line, message):
        (folder / "list.txt").write_text(line)
        with pytest.raises(ValueError, match=message):
            pairs.pose_list(folder / "list.txt")


def test_with_long_side():
    assert pairs.with_long_side((1600, 1199), 832, 8) == (832, 616)
    assert pairs.with_long_side((600, 800), 640, 8) == (480, 640)
    assert pairs.with_long_side((300, 200), 840, 8) == (840, 560)
    assert pairs.with_long_side((1000, 769), 832, 8) == (832, 640)  # 639.8 is rounded before it is rounded down
    assert pairs.with_long_side((2000, 3), 640, 8) == (640, 8)


class Touch:
    """Runs code when it is unpickled the careless way."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("as_zip", [False, True])
def test_code_in_a_file_of_arrays_is_refused_and_not_run(tmp_path, as_zip):
    path, touched = tmp_path / "scene.npz", tmp_path / "touched"
    bad = {"pair_infos": np.array([Touch(touched)], dtype=object)}
    if as_zip:
        np.savez(path, **bad)
    else:
        path.write_bytes(pickle.dumps(bad))
    with pytest.raises(ValueError, match=r"not a file of arrays \(it refers to .*open\)"):
        read_arrays(path)
    assert not touched.exists()


@pytest.mark.parametrize("data", [b"", b"nonsense", b"PK\x03\x04 cut off"])
def test_damaged_file_of_arrays(tmp_path, data):
    (tmp_path / "x.npz").write_bytes(data)
    with pytest.raises(ValueError, match=r"x\.npz: not a file of arrays") as error:
        read_arrays(tmp_path / "x.npz")
    one_line(error)


def test_complex_and_other_matrices_are_no_homographies(tmp_path):
    for values in (np.eye(3) * 1j, np.array([["a"] * 3] * 3), np.full((3, 3), 1e300), np.eye(2)):
        np.save(tmp_path / "H.npy", values)
        with pytest.raises(ValueError, match=r"H\.npy: not a homography"):
            pairs.read_homography(tmp_path / "H.npy")


class TestStereo:
    VALUES = np.array([[0.0, 1.5], [2.0, np.nan]], dtype=np.float32)

    @pytest.mark.parametrize("suffix", ["npy", "npz", "pfm", "tif"])
    def test_files_of_disparity(self, folder, suffix):
        path = folder / f"d.{suffix}"
        if suffix == "npy":
            np.save(path, self.VALUES)
        elif suffix == "npz":
            np.savez(path, self.VALUES)
        else:
            cv2.imwrite(str(path), self.VALUES)
        (folder / "list.txt").write_text(f"a.png a.png d.{suffix}\n")
        (pair,) = pairs.stereo_list(folder / "list.txt")
        np.testing.assert_array_equal(pair.read_disparity(), [[np.nan, 1.5], [2, np.nan]])

    def test_scale(self, folder):
        cv2.imwrite(str(folder / "d.png"), np.array([[0, 384]], dtype=np.uint16))
        (folder / "list.txt").write_text("a.png a.png d.png 256\n")
        (pair,) = pairs.stereo_list(folder / "list.txt")
        np.testing.assert_array_equal(pair.read_disparity(), [[np.nan, 1.5]])

    def test_malformed(self, folder):
        (folder / "list.txt").write_text("a.png a.png a.png 0\n")
        with pytest.raises(ValueError, match=r"list\.txt:1: scale is 0"):
            pairs.stereo_list(folder / "list.txt")
        (folder / "list.txt").write_text("a.png a.png\n")
        with pytest.raises(ValueError, match=r"list\.txt:1: 2 entries"):
            pairs.stereo_list(folder / "list.txt")
        (folder / "list.txt").write_text("a.png a.png a.png\n")
        (pair,) = pairs.stereo_list(folder / "list.txt")
        with pytest.raises(ValueError, match=r"expected \[H, W\] with one value a pixel"):
            pair.read_disparity()


NAMES = (
    "x#1.jpg",
    "it's.jpg",
    'a"b.jpg',
    "two words.jpg",
    "rock'n'roll.jpg",
    "back\\slash.jpg",
    "narrow\u202fspace.jpg",
    "next\x85line.jpg",
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_names_that_lists_of_others_do_not_quote(tmp_path, name, mark):
    for one in (name, "b.jpg"):
        (tmp_path / one).write_bytes(b"x")
    word = f"'{name}'" if " " in name else name
    lines = f"b.jpg {word}  # {word}\r\n# {word}\n\n\t{word} b.jpg"
    (tmp_path / "pairs.txt").write_bytes(mark + lines.encode())
    assert pairs.image_pairs(tmp_path / "pairs.txt", tmp_path) == [("b.jpg", name)]
    H = "1 0 0 0 1 0 0 0 1"
    (tmp_path / "list.txt").write_bytes(mark + f"{word} b.jpg {H}\n".encode())
    (pair,) = pairs.homography_list(tmp_path / "list.txt")
    assert pair.image0 == tmp_path / name


def test_a_list_of_another_encoding(tmp_path):
    (tmp_path / "pairs.txt").write_bytes("a.jpg b.jpg".encode("utf-16"))
    with pytest.raises(InputError, match=r"pairs.txt is not a text file in UTF-8, expected a list; save it as UTF-8"):
        pairs.image_pairs(tmp_path / "pairs.txt", tmp_path)


@pytest.mark.parametrize("name", ["a" * 300, "a" * 100_000, "a\0b"])
def test_what_is_no_name(tmp_path, name):
    (tmp_path / "pairs.txt").write_text(f"{name} b.jpg\n", encoding="utf-8")
    with pytest.raises((InputError, OSError)) as error:
        pairs.image_pairs(tmp_path / "pairs.txt", tmp_path)
    assert len(str(error.value)) < 800
