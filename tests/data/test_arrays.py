"""Files of arrays that lie: no crash, no memory without bound, no code."""

import pickle

import numpy as np
import pytest

from quadtree_attention.data.arrays import read_arrays, read_npy
from quadtree_attention.errors import InputError

from ..fuzz.kinds.arrays import HOSTILE_INDEX, Crafted, zip_bomb


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize("kind", ["<f8", ">f4", "<i2", "?", "<c8", "<U3", "S4", "O"])
def test_pickles_of_arrays_are_read_as_they_are(tmp_path, kind, protocol):
    want = np.array([[1, 0, 2], [3, 4, 5]]).astype(kind)
    content = {"a": want, "f": np.asfortranarray(want), "nested": [(want[0], 3.5, "text")], "number": np.float32(2.5)}
    (tmp_path / "a.npz").write_bytes(pickle.dumps(content, protocol))
    found = read_arrays(tmp_path / "a.npz")
    for got in (found["a"], found["f"]):
        np.testing.assert_array_equal(got, want)
        assert (got.dtype.kind, got.dtype.itemsize) == (want.dtype.kind, want.dtype.itemsize)
    np.testing.assert_array_equal(found["nested"][0][0], want[0])
    assert (found["nested"][0][1:], found["number"]) == ((3.5, "text"), 2.5)
    # and sent on to a process that reads samples, they are plain arrays
    assert type(pickle.loads(pickle.dumps(found["a"]))) is np.ndarray


def test_flags_of_a_type_are_not_believed(tmp_path):
    """Numpy itself takes the bytes for pointers to objects, and the process ends."""
    (tmp_path / "a.npz").write_bytes(pickle.dumps({"x": Crafted()}))
    found = read_arrays(tmp_path / "a.npz")["x"]
    assert (found.dtype, found.tolist()) == (np.float64, [1.0, 2.0])


@pytest.mark.parametrize("name", sorted(set(HOSTILE_INDEX) - {"flags"}))
def test_what_lies_of_its_size_is_refused(tmp_path, name):
    (tmp_path / "a.npz").write_bytes(HOSTILE_INDEX[name])
    with pytest.raises(InputError, match=r"a\.npz: not a file of arrays \(") as error:
        read_arrays(tmp_path / "a.npz")
    assert "\n" not in str(error.value)


def test_what_expands_without_bound_is_refused(tmp_path):
    bomb = zip_bomb(b"{'descr': '<f8', 'fortran_order': False, 'shape': (400000000,), }\n", 3_200_000_000)
    assert len(bomb) < 4_000_000
    (tmp_path / "a.npz").write_bytes(bomb)
    with pytest.raises(InputError, match="it expands to more than 1 GiB"):
        read_arrays(tmp_path / "a.npz")


@pytest.mark.parametrize("shape", [(999_999_999,), (2**40, 2**40), (-1,), (10, 2)])
def test_shapes_beyond_the_file_are_refused_before_there_is_room_for_them(tmp_path, shape):
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
        file.write(np.ones(9).tobytes())
    with pytest.raises(InputError, match=r"a\.npy: not an array \("):
        read_npy(tmp_path / "a.npy")


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
    assert "\n" not in str(error.value)
