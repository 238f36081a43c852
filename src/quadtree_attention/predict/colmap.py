"""COLMAP databases of matches (pycolmap)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..extras import require
from ..files import atomic_write

if TYPE_CHECKING:
    from .folder import Tracks

_MODES = {"auto": "AUTO", "single": "SINGLE", "per-folder": "PER_FOLDER", "per-image": "PER_IMAGE"}


def write_database(tracks: Tracks, folder: Path, path: Path, cameras: str) -> tuple[int, list[str]]:
    """Write cameras, images, keypoints, matches and the geometry of each pair to a new database, whole or not at all.

    Cameras and images are as COLMAP's own import makes them, with focal lengths from EXIF or guessed. COLMAP's pixel centres are at halves.

    Returns:
        How many matches agree with the geometry of their pair, and a line for each image that COLMAP cannot read.
    """
    pycolmap = require("pycolmap", "sfm")
    verified = 0
    with atomic_write(path) as temporary:
        temporary.unlink()  # an empty file is no database
        pycolmap.Database.open(temporary).close()
        mode = getattr(pycolmap.CameraMode, _MODES[cameras])
        before, pycolmap.logging.minloglevel = pycolmap.logging.minloglevel, pycolmap.logging.Level.FATAL.value
        try:  # what it cannot read is told by the caller
            pycolmap.import_images(temporary, folder, camera_mode=mode, image_names=list(tracks.keypoints))
        finally:
            pycolmap.logging.minloglevel = before
        base = pycolmap.Database.open(temporary)
        try:
            images = {image.name: image for image in base.read_all_images()}
            camera = {name: base.read_camera(image.camera_id) for name, image in images.items()}
            points = {name: (tracks.keypoints[name] + 0.5).astype(np.float32) for name in images}
            with pycolmap.DatabaseTransaction(base):
                for name, image in images.items():
                    base.write_keypoints(image.image_id, points[name])
                for name0, name1, rows in tracks:
                    if name0 in images and name1 in images:
                        ids, matches = (images[name0].image_id, images[name1].image_id), rows[:, :2].astype(np.uint32)
                        base.write_matches(*ids, matches)
                        geometry = _geometry(
                            pycolmap, camera[name0], points[name0], camera[name1], points[name1], matches
                        )
                        base.write_two_view_geometry(*ids, geometry)
                        verified += len(geometry.inlier_matches)
        finally:
            base.close()
    unread = [
        f"{folder / name}: COLMAP cannot read images of this kind" for name in tracks.keypoints if name not in images
    ]
    return verified, unread


def _geometry(pycolmap, camera0, points0, camera1, points1, matches):
    """The geometry of two views, by COLMAP's own robust estimators; the same matches give the same one."""
    options = pycolmap.TwoViewGeometryOptions()
    options.ransac.random_seed = 0
    return pycolmap.estimate_two_view_geometry(camera0, points0, camera1, points1, matches, options)
