import cv2
import numpy as np
import pytest
from PIL import Image

from quadtree_attention.data.maps import read_map, read_pfm
from quadtree_attention.errors import InputError
from quadtree_attention.evaluation.lists import stereo_list

VALUES = np.random.default_rng(0).uniform(1, 99, (24, 34)).astype(np.float32)


def written(path, values, scale=b"-1", end=b"\n", space=b" "):
    """A PFM file, by Debevec's description: rows from the bottom up, a negative scale for little-endian numbers."""
    order = "<f4" if scale.startswith(b"-") else ">f4"
    head = (
        (b"Pf" if values.ndim == 2 else b"PF")
        + end
        + b"%d%s%d" % (values.shape[1], space, values.shape[0])
        + end
        + scale
        + end
    )
    path.write_bytes(head + values[::-1].astype(order).tobytes())
    return path


@pytest.mark.parametrize(
    "scale", [b"-1", b"-1.0", b"-0.003922", b"-255", b"1", b"0.00392157", b"1e3", b"-1.000000e+00"]
)
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_only_the_sign_of_the_scale_counts(tmp_path, scale, end):
    np.testing.assert_array_equal(read_map(written(tmp_path / "a.pfm", VALUES, scale, end)), VALUES)
    colors = np.stack([VALUES, 2 * VALUES, 3 * VALUES], -1)
    np.testing.assert_array_equal(read_pfm(written(tmp_path / "c.PFM", colors, scale, end)), colors)


def test_a_list_of_pairs_reads_the_disparity_of_middlebury(tmp_path):
    """Middlebury 2014's files have such scales, and infinity where nothing is known."""
    values = VALUES.copy()
    values[3, 4] = np.inf
    Image.new("RGB", (34, 24)).save(tmp_path / "a.png")
    written(tmp_path / "d.pfm", values, b"-0.003922", b"\n")
    (tmp_path / "list.txt").write_text("a.png a.png d.pfm\n")
    values[3, 4] = np.nan
    np.testing.assert_array_equal(stereo_list(tmp_path / "list.txt")[0].read_disparity(), values)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"Pf\n999999999 999999999\n-1\n", "says that it has 999999999x999999999 pixels"),
        (b"Pf\n-1 240\n-1\n", "says that it has -1x240 pixels"),
        (b"Pf\n65536 65536\n-1\n", "says that it has 65536x65536 pixels"),
        (b"Pf\n0 5\n-1\n", "says that it has 0x5 pixels"),
        (b"Pf\n300 200\n-1\n", "is cut off: expected 240000 bytes for its 300x200 pixels"),
        (b"Pf\n2 2\n0\n", "has the scale 0, expected a number below or above 0"),
        (b"Pf\n2 2\nnan\n", "has the scale nan, expected a number"),
        (b"P6\n2 2\n255\n", "is not a PFM file"),
        (b"Pf\n2\n", "is not a PFM file"),
        (b"", "is not a PFM file"),
    ],
)
def test_damaged_pfm(tmp_path, capfd, head, message):
    (tmp_path / "a.pfm").write_bytes(head + bytes(16))
    with pytest.raises(InputError, match=rf"a\.pfm {message}") as error:
        read_map(tmp_path / "a.pfm")
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_depth_of_images_is_kept(tmp_path):
    deep = np.uint16(VALUES * 256)
    for name in ("a.png", "a.tif"):
        cv2.imwrite(str(tmp_path / name), deep)
        np.testing.assert_array_equal(read_map(tmp_path / name), deep)
    cv2.imwrite(str(tmp_path / "f.tif"), VALUES)
    np.testing.assert_array_equal(read_map(tmp_path / "f.tif"), VALUES)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.npy", "a.npz"])
def test_damaged_maps_are_one_line_without_any_other(tmp_path, capfd, name):
    path = tmp_path / name
    (np.save if name.endswith("npy") else np.savez if name.endswith("npz") else cv2.imwrite)(
        str(path), np.uint16(VALUES)
    )
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(InputError, match=rf"{path.name}.*") as error:
        read_map(path)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_arrays_of_other_things(tmp_path):
    np.save(tmp_path / "text.npy", np.array(["a"]))
    with pytest.raises(InputError, match=r"text\.npy: not a file of numbers"):
        read_map(tmp_path / "text.npy")
    np.savez(tmp_path / "none.npz")
    with pytest.raises(InputError, match=r"none\.npz: not a file of numbers"):
        read_map(tmp_path / "none.npz")
    with pytest.raises(FileNotFoundError, match=r"x\.npy does not exist"):
        read_map(tmp_path / "x.npy")
