"""COLMAP models and depth maps, lists of pairs, and what match-folder keeps while it lasts."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import numpy as np

from . import Kind
from .images import picture


def _colmap(folder: Path, binary: bool) -> list[tuple[Path, str]]:
    from PIL import Image

    sparse = folder / "sparse"
    (folder / "images").mkdir()
    sparse.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(picture()).save(folder / "images" / name)
    rng = np.random.default_rng(0)
    points = np.c_[rng.uniform(-1, 1, (20, 2)), rng.uniform(3, 5, 20)]
    rows = [[], []]
    for number, (x, y, z) in enumerate(points, 1):
        for side in (0, 1):
            rows[side].append(f"{50 * (x - side / 2) / z + 32} {50 * y / z + 24} {number}")
    (sparse / "cameras.txt").write_text("1 PINHOLE 64 48 50 50 32 24\n")
    (sparse / "images.txt").write_text(
        "".join(f"{n} 1 0 0 0 {(1 - n) / 2} 0 0 1 {'ab'[n - 1]}.png\n{' '.join(rows[n - 1])}\n" for n in (1, 2))
    )
    (sparse / "points3D.txt").write_text(
        "".join(f"{n} {x} {y} {z} 9 9 9 0 1 {n - 1} 2 {n - 1}\n" for n, (x, y, z) in enumerate(points, 1))
    )
    if binary:
        import pycolmap

        model = pycolmap.Reconstruction(sparse)
        for path in sparse.iterdir():
            path.unlink()
        model.write_binary(sparse)
    return [(path, "bytes" if binary else "text") for path in sorted(sparse.iterdir())]


def _read_colmap(folder: Path, path: Path) -> None:
    from quadtree_attention.evaluation.pose_sets import colmap_pairs

    colmap_pairs(folder)


def _depth(folder: Path) -> list[tuple[Path, str]]:
    path = folder / "a.png.geometric.bin"
    path.write_bytes(b"8&6&1&" + np.arange(48, dtype="<f4").tobytes())
    return [(path, "bytes")]


def _read_depth(folder: Path, path: Path) -> None:
    from quadtree_attention.data.matching.colmap import read_depth

    assert read_depth(path).ndim == 2


MATRIX = "1 0 3 0 1 4 0 0 1"
POSE = "1 0 0 1 0 1 0 0 0 0 1 0 0 0 0 1"


def _lists(folder: Path) -> list[tuple[Path, str]]:
    from PIL import Image

    for name in ("a.png", "b c.png", "x#1.png", "it's.png"):
        Image.fromarray(picture()).save(folder / name)
    np.save(folder / "d.npy", np.ones((48, 64), np.float32))
    for name, lines in (
        ("pairs.txt", "# both\na.png 'b c.png'\nx#1.png it's.png\n"),
        ("homographies.txt", f'a.png "b c.png" {MATRIX}\n'),
        ("poses.txt", f"a.png it's.png 0 1 {MATRIX} {MATRIX} {POSE}\n"),
        ("stereo.txt", "a.png x#1.png d.npy 256\n"),
    ):
        (folder / name).write_text(lines)
    return [(path, "text") for path in sorted(folder.glob("*.txt"))]


def _read_list(folder: Path, path: Path) -> None:
    from quadtree_attention.data.lists import image_pairs
    from quadtree_attention.evaluation import lists

    if path.stem == "pairs":
        image_pairs(path, folder)
    else:
        read = {"homographies": lists.homography_list, "poses": lists.pose_list, "stereo": lists.stereo_list}[path.stem]
        read(path)


HOSTILE_LISTS = {
    "empty": b"",
    "binary": bytes(range(256)),
    "utf-16": "a.png x#1.png".encode("utf-16"),
    "long-name": b"a" * 100_000 + b" b",
    "null": b"a\0.png b.png",
    "far": b"../" * 2000 + b"a.png a.png",
    "folder": b". ..",
    "quotes": b"\"'\"'\"'\"'" * 5000,
    "nested-quotes": b"' " * 50_000,
}


def _partial(folder: Path) -> list[tuple[Path, str]]:
    """A run of match-folder that was cut off after one of its three pairs."""
    from quadtree_attention.predict.match_store import MatchStore, PairMatches

    store = MatchStore(folder / "m.h5.partial", {"version": 1, "names": ["x"]})
    ones = np.ones((3, 2), np.float32)
    for pair in (("a.png", "b.png"), ("a.png", "c.png")):
        store.add(pair, "1 2 3 4", PairMatches(ones, ones, np.ones(3, np.float32)))
    store.close()
    return [(folder / "m.h5.partial", "bytes")]


def _go_on(folder: Path, path: Path) -> None:
    from quadtree_attention.predict.folder import Tracks, write_hloc
    from quadtree_attention.predict.match_store import MatchStore

    store = MatchStore(path, {"version": 1, "names": ["x"]})
    try:
        pairs = [pair for pair in (("a.png", "b.png"), ("a.png", "c.png")) if store.has(pair, "1 2 3 4")]
        names = dict.fromkeys((name for pair in pairs for name in pair), 1.0)
        write_hloc(Tracks(store, pairs, names), folder / "m.h5", folder / "features.h5")
    finally:
        store.close()


def _databases() -> dict[str, bytes]:
    """Files of SQLite that are no such run, or say what is not so."""
    found = {"empty": b"", "text": b"hello\n", "head": b"SQLite format 3\0", "zeros": bytes(8192)}
    settings = json.dumps({"version": 1, "names": ["x"]}, sort_keys=True)
    ours = (
        "CREATE TABLE settings (content TEXT)",
        "CREATE TABLE matches (name0 TEXT, name1 TEXT, stamp TEXT, points0 BLOB, points1 BLOB, confidence BLOB, "
        "PRIMARY KEY (name0, name1))",
    )
    pair = "INSERT INTO matches VALUES ('a.png', 'b.png', '1 2 3 4', "
    for name, statements in {
        "theirs": ["CREATE TABLE images (name TEXT)", "INSERT INTO images VALUES ('a.png')"],
        "view": ["CREATE VIEW matches AS SELECT 1 AS name0"],
        "columns": ["CREATE TABLE matches (name0 TEXT)"],
        "trigger": [*ours, "CREATE TRIGGER t AFTER INSERT ON matches BEGIN DELETE FROM matches; END"],
        "null": [*ours, f"INSERT INTO settings VALUES ('{settings}')", pair + "NULL, 7, 'x')"],
        "odd": [*ours, f"INSERT INTO settings VALUES ('{settings}')", pair + "x'00', x'00', x'00')"],
        "deep": [*ours, f"INSERT INTO settings VALUES ('{'[' * 100_000}')", pair + "x'', x'', x'')"],
        "number": [*ours, "INSERT INTO settings VALUES (7)", pair + "x'', x'', x'')"],
    }.items():  # fmt: skip
        base = sqlite3.connect(":memory:")
        for statement in statements:
            base.execute(statement)
        base.commit()
        found[name] = base.serialize() if hasattr(base, "serialize") else b""  # since Python 3.11
        base.close()
    return found


KINDS = [
    Kind("colmap", lambda folder: _colmap(folder, True), _read_colmap, {"empty": b"", "ones": b"\xff" * 300},
         names=False, seconds=80, cases=4, needs="pycolmap"),
    Kind("colmap-text", lambda folder: _colmap(folder, False), _read_colmap, {"empty": b""},
         names=False, seconds=80, cases=4, needs="pycolmap"),
    Kind("colmap-depth", _depth, _read_depth, {"huge": b"999999&999999&1&", "none": b"0&0&1&"}),
    Kind("lists", _lists, _read_list, HOSTILE_LISTS),
    Kind("partial", _partial, _go_on, _databases(), results=("m.h5", "features.h5", "m.h5.partial"),
         leaves=("m.h5.partial",), cases=60, needs="h5py"),
]  # fmt: skip
