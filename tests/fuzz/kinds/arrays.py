"""Arrays of numbers: indexes of ScanNet and MegaDepth, homographies, poses."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from . import Kind


def _indexes(folder: Path) -> list[tuple[Path, str]]:
    infos = np.empty(2, object)
    infos[:] = [((0, 1), 0.5, [1, 2]), ((1, 0), 0.7, [3])]
    arrays = {
        "image_paths": np.array(["a.jpg", "b.jpg"], object),
        "depth_paths": np.array(["a.h5", "b.h5"], object),
        "intrinsics": np.stack([np.eye(3)] * 2),
        "poses": np.stack([np.eye(4)] * 2),
        "pair_infos": infos,
    }
    np.savez(folder / "scene.npz", **arrays)
    with (folder / "plain.npz").open("wb") as file:
        pickle.dump(arrays, file)
    return [(folder / "scene.npz", "zip"), (folder / "plain.npz", "pickle")]


def _read_index(folder: Path, path: Path) -> None:
    from quadtree_attention.data.matching.layouts import MegaDepthScene

    MegaDepthScene(folder, path)


def _scannet(folder: Path) -> list[tuple[Path, str]]:
    np.savez(folder / "test.npz", name=np.array([[1, 0, 3, 4], [1, 0, 5, 6]]), score=np.array([0.5, 0.6]))
    np.savez(folder / "intrinsics.npz", scene0001_00=np.eye(3))
    return [(folder / "test.npz", "zip"), (folder / "intrinsics.npz", "zip")]


def _read_scannet(folder: Path, path: Path) -> None:
    from quadtree_attention.data.matching.layouts import ScanNetScene

    ScanNetScene(folder, folder / "test.npz", folder / "intrinsics.npz")


def _homographies(folder: Path) -> list[tuple[Path, str]]:
    H = np.array([[1, 0.1, 3], [0, 1.2, 4], [1e-4, 0, 1]])
    np.save(folder / "H.npy", H)
    np.savetxt(folder / "H.txt", H)
    values = " ".join(f"{value:g}." if value == int(value) else f"{value:g}" for value in H.ravel())
    matrix = f'<H type_id="opencv-matrix"><rows>3</rows><cols>3</cols><dt>d</dt><data>{values}</data></H>'
    (folder / "H.xml").write_text(f'<?xml version="1.0"?>\n<opencv_storage>\n{matrix}\n</opencv_storage>\n')
    text = f"%YAML:1.0\n---\nH: !!opencv-matrix\n   rows: 3\n   cols: 3\n   dt: d\n   data: [ {', '.join(values.split())} ]\n"
    (folder / "H.yml").write_text(text)
    forms = {".npy": "npy", ".txt": "text", ".xml": "text", ".yml": "text"}
    return [(path, forms[path.suffix]) for path in sorted(folder.iterdir())]


def _read_homography(folder: Path, path: Path) -> None:
    from quadtree_attention.evaluation.lists import read_homography

    assert read_homography(path).shape == (3, 3)


def _poses(folder: Path) -> list[tuple[Path, str]]:
    np.savetxt(folder / "pose.txt", np.eye(4))
    return [(folder / "pose.txt", "text")]


def _read_pose(folder: Path, path: Path) -> None:
    from quadtree_attention.data.matching.layouts import read_pose

    assert read_pose(path).shape == (4, 4)


def _zip_of(header: bytes, content: bytes = b"") -> bytes:
    """An .npz with one array ``name``, of a header."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("name.npy", b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + content)
    return out.getvalue()


def zip_bomb(header: bytes, zeros: int) -> bytes:
    """The same, with so many zeros behind the header, a thousandth of it on disk; its checksum is wrong, which shows only at the end."""
    head = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    million = packer.compress(bytes(10**6)) + packer.flush(zlib.Z_FULL_FLUSH)
    data += million * (zeros // 10**6) + packer.flush()
    name, size = b"name.npy", len(head) + zeros // 10**6 * 10**6
    common = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 0x21, 0, len(data), size, len(name), 0)
    local = b"PK\3\4" + common + name + data
    central = b"PK\1\2" + struct.pack("<H", 20) + common + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name
    return local + central + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local), 0)


class _Lying:
    """Pickled as a dtype of numbers whose flags say that it holds objects: numpy would take its bytes for pointers."""

    def __reduce__(self):
        return np.dtype, ("f8", False, True), (3, "<", None, None, None, 8, 8, 63)


class Crafted:
    """Pickled as an array of two numbers of that type."""

    def __reduce__(self):
        reconstruct, arguments, _ = np.empty(0).__reduce__()
        return reconstruct, arguments, (1, (2,), _Lying(), False, np.array([1.0, 2.0]).tobytes())


HOSTILE_INDEX = {
    "expands": zip_bomb(b"{'descr': '<f8', 'fortran_order': False, 'shape': (400000000,), }\n", 3_200_000_000),
    "claims": _zip_of(b"{'descr': '<f8', 'fortran_order': False, 'shape': (400000000000,), }\n"),
    "objects": _zip_of(b"{'descr': '|O', 'fortran_order': False, 'shape': (4,), }\n", pickle.dumps(print)),
    "flags": pickle.dumps({"image_paths": Crafted()}),
    "deep": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "memo": b"\x80\x02r\xff\xff\xff\x7f.",
    "long": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "bytes": b"\x80\x04\x8e\xff\xff\xff\xff\x0f\0\0\0.",
    "frame": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
}

KINDS = [
    Kind("indexes", _indexes, _read_index, HOSTILE_INDEX, cases=150, needs="lightning"),
    Kind("scannet", _scannet, _read_scannet, HOSTILE_INDEX, cases=60),
    Kind("homographies", _homographies, _read_homography, cases=80),
    Kind("poses", _poses, _read_pose, cases=40),
]
