"""Writes COLMAP databases of matches (pycolmap)."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from ..data.images import stored_size
from ..errors import InputError
from ..extras import require
from .tracks import Tracks

_MODES = {"auto": "AUTO", "single": "SINGLE", "per-folder": "PER_FOLDER", "per-image": "PER_IMAGE"}
_BESIDE = ("-wal", "-shm", "-journal")  # files of SQLite that belong to a database


def sqlite_files(path: Path) -> list[Path]:
    """The SQLite files beside a database, with changes that a process which was killed, or is still running, had not yet stored in it."""
    return [place for end in _BESIDE if (place := path.with_name(path.name + end)).exists()]


def unreadable_images(folder: Path, names: Iterable[str], cameras: str) -> dict[str, str]:
    """The images that COLMAP cannot read, by name, with a line that says why.

    Raises:
        InputError: images that should share a camera differ in size.
    """
    pycolmap = require("pycolmap", "sfm")
    lines = {
        name: f"{folder / name}: COLMAP cannot read images of this kind; convert it to PNG or JPEG" for name in names
    }
    with tempfile.TemporaryDirectory() as place:
        images = _imported(pycolmap, Path(place) / "a.db", folder, list(lines), "per-image")
    readable = [name for name in lines if name in images]
    _check_sizes(folder, readable, cameras)
    return {name: line for name, line in lines.items() if name not in images}


def _check_sizes(folder: Path, names: Sequence[str], cameras: str) -> None:
    first: dict[PurePath, tuple[str, tuple[int, int]]] = {}  # by the images that share a camera
    if cameras not in ("single", "per-folder"):
        return
    for name in names:
        size = stored_size(folder / name)
        other, its_size = first.setdefault(
            PurePath(name).parent if cameras == "per-folder" else PurePath(), (name, size)
        )
        if size != its_size:
            sizes = [f"{width}x{height}" for width, height in (its_size, size)]
            raise InputError(
                f"cameras is {cameras}, but {other} has {sizes[0]} pixels and {name} {sizes[1]}, expected one size of images "
                "that share a camera; choose auto or per-image"
            )


def write_database(
    tracks: Tracks, folder: Path, path: Path, cameras: str, written: Callable[[list[Path]], object]
) -> int:
    """Write cameras, images, keypoints, matches and the geometry of each pair to a new database, whole or not at all.

    Cameras and images are those of COLMAP's own import, with focal lengths from EXIF or guessed. COLMAP's pixel centres are at halves.
    Files beside an older database of that name (``-wal``, ``-shm``) are removed with it. ``written`` is called with the file before it gets its name.

    Returns:
        The number of matches that agree with the geometry of their pair.

    Raises:
        OSError: it cannot be written, or the disk is full.
    """
    pycolmap = require("pycolmap", "sfm")
    path = Path(os.path.realpath(path))
    # A separate folder, because SQLite writes files beside a database. If there is one already, a killed run left it.
    place = path.with_name(f".{path.name}.writing")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    try:
        verified = _fill(pycolmap, tracks, folder, place / path.name, cameras)
        written([place / path.name])
        for old in sqlite_files(path):  # first: SQLite would apply them to the new database
            old.unlink()
        (place / path.name).replace(path)
    except RuntimeError as error:  # COLMAP raises no other error for SQLite's failures
        if shutil.disk_usage(path.parent).free < 2**20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return verified


def _fill(pycolmap: Any, tracks: Tracks, folder: Path, path: Path, cameras: str) -> int:
    verified = 0
    images = _imported(pycolmap, path, folder, list(tracks.keypoints), cameras)
    base = pycolmap.Database.open(path)
    try:
        camera = {name: base.read_camera(image.camera_id) for name, image in images.items()}
        points = {name: (tracks.keypoints[name] + 0.5).astype(np.float32) for name in images}
        with pycolmap.DatabaseTransaction(base):
            for name, image in images.items():
                base.write_keypoints(image.image_id, points[name])
            for name0, name1, rows in tracks:
                ids, matches = (images[name0].image_id, images[name1].image_id), rows[:, :2].astype(np.uint32)
                base.write_matches(*ids, matches)
                geometry = _geometry(pycolmap, camera[name0], points[name0], camera[name1], points[name1], matches)
                base.write_two_view_geometry(*ids, geometry)
                verified += len(geometry.inlier_matches)
    finally:
        base.close()
    return verified


def _imported(pycolmap: Any, path: Path, folder: Path, names: list[str], cameras: str) -> dict[str, Any]:
    """Make a database of images and cameras, and return the images in it by name: only those that COLMAP can read."""
    pycolmap.Database.open(path).close()
    mode = getattr(pycolmap.CameraMode, _MODES[cameras])
    before, pycolmap.logging.minloglevel = pycolmap.logging.minloglevel, pycolmap.logging.Level.FATAL.value
    try:  # the caller reports what it cannot read
        pycolmap.import_images(path, folder, camera_mode=mode, image_names=names)
    finally:
        pycolmap.logging.minloglevel = before
    base = pycolmap.Database.open(path)
    try:
        return {image.name: image for image in base.read_all_images()}
    finally:
        base.close()


def _geometry(pycolmap, camera0, points0, camera1, points1, matches):
    """Estimate the geometry of two views with COLMAP's own robust estimators; the same matches give the same result."""
    options = pycolmap.TwoViewGeometryOptions()
    options.ransac.random_seed = 0
    return pycolmap.estimate_two_view_geometry(camera0, points0, camera1, points1, matches, options)
