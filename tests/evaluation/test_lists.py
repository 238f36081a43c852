import re

import cv2
import numpy as np
import pytest
from PIL import Image

from quadtree_attention.evaluation import lists

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
        found = lists.homography_list(folder / "list.txt")
        assert len(found) == 4
        assert found[0].image1 == folder / "b c.png"
        for pair in found:
            np.testing.assert_allclose(pair.homography, H, rtol=1e-12)

    def test_another_root(self, folder, tmp_path_factory):
        path = tmp_path_factory.mktemp("lists") / "list.txt"
        path.write_text(f"a.png a.png {H_WORDS}")
        assert lists.homography_list(path, folder)[0].image0 == folder / "a.png"

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
            lists.homography_list(folder / "list.txt")
        assert re.search(message, one_line(error))

    def test_empty_missing_and_binary_lists(self, folder):
        (folder / "empty.txt").write_text("# nothing\n")
        with pytest.raises(ValueError, match="no pairs in it"):
            lists.homography_list(folder / "empty.txt")
        with pytest.raises(FileNotFoundError, match=r"none\.txt cannot be read"):
            lists.homography_list(folder / "none.txt")
        with pytest.raises(ValueError, match="is not a text file"):
            lists.homography_list(folder / "a.png")


class TestHPatches:
    @pytest.fixture
    def sequences(self, tmp_path):
        for number, size in (("1", (96, 64)), ("2", (64, 64))):
            image(tmp_path / "v_wall" / f"{number}.ppm", size)
        np.savetxt(tmp_path / "v_wall" / "H_1_2", H)
        return tmp_path

    def test_homographies_follow_the_resizing(self, sequences):
        (pair,) = lists.hpatches(sequences, short_side=32)
        assert (pair.name, pair.size0, pair.size1) == ("v_wall/1-2", (48, 32), (32, 32))
        # both are halved: the centre of the pixels 0 and 1 becomes that of pixel 0
        x = np.array([10.0, 20.0, 1])
        there = H @ (2 * x + [0.5, 0.5, -1])
        np.testing.assert_allclose(
            (pair.homography @ x)[:2] / (pair.homography @ x)[2], there[:2] / there[2] / 2 - 0.25
        )

    def test_as_they_are(self, sequences):
        (pair,) = lists.hpatches(sequences, short_side=None)
        assert pair.size0 is None
        np.testing.assert_allclose(pair.homography, H)

    def test_missing_parts(self, sequences, tmp_path):
        (sequences / "v_wall" / "2.ppm").unlink()
        with pytest.raises(FileNotFoundError, match=r"image 2\.ppm is missing, needed for H_1_2"):
            lists.hpatches(sequences)
        (sequences / "v_wall" / "H_1_2").unlink()
        with pytest.raises(FileNotFoundError, match="no files H_1_2"):
            lists.hpatches(sequences)
        with pytest.raises(ValueError, match="no folders i_"):
            lists.hpatches(sequences / "v_wall")


class TestPoseList:
    NUMBERS = "100 0 32 0 100 24 0 0 1 90 0 32 0 90 24 0 0 1 1 0 0 .1 0 1 0 .2 0 0 1 .3 0 0 0 1"

    def test_fields(self, folder):
        (folder / "list.txt").write_text(f"a.png a.png 0 3 {self.NUMBERS}\n")
        (pair,) = lists.pose_list(folder / "list.txt")
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
                "both cameras are at the same place",
            ),
        ],
    )
    def test_malformed(self, folder, line, message):
        (folder / "list.txt").write_text(line)
        with pytest.raises(ValueError, match=message):
            lists.pose_list(folder / "list.txt")


def test_complex_and_other_matrices_are_no_homographies(tmp_path):
    for values in (np.eye(3) * 1j, np.array([["a"] * 3] * 3), np.full((3, 3), 1e300), np.eye(2)):
        np.save(tmp_path / "H.npy", values)
        with pytest.raises(ValueError, match=r"H\.npy: not a homography"):
            lists.read_homography(tmp_path / "H.npy")


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
        (pair,) = lists.stereo_list(folder / "list.txt")
        np.testing.assert_array_equal(pair.read_disparity(), [[np.nan, 1.5], [2, np.nan]])

    def test_scale(self, folder):
        cv2.imwrite(str(folder / "d.png"), np.array([[0, 384]], dtype=np.uint16))
        (folder / "list.txt").write_text("a.png a.png d.png 256\n")
        (pair,) = lists.stereo_list(folder / "list.txt")
        np.testing.assert_array_equal(pair.read_disparity(), [[np.nan, 1.5]])

    def test_malformed(self, folder):
        (folder / "list.txt").write_text("a.png a.png a.png 0\n")
        with pytest.raises(ValueError, match=r"list\.txt:1: scale is 0"):
            lists.stereo_list(folder / "list.txt")
        (folder / "list.txt").write_text("a.png a.png\n")
        with pytest.raises(ValueError, match=r"list\.txt:1: 2 entries"):
            lists.stereo_list(folder / "list.txt")
        (folder / "list.txt").write_text("a.png a.png a.png\n")
        (pair,) = lists.stereo_list(folder / "list.txt")
        with pytest.raises(ValueError, match=r"expected \[H, W\] with one value per pixel"):
            pair.read_disparity()
