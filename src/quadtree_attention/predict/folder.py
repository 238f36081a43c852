"""Matches pairs of images in a folder, and writes the files that structure from motion starts from."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from .. import __version__
from ..data.images import MIN_SIDE, fitted_size, read_image, resize_longest, stored_pixels
from ..errors import InputError
from ..extras import require
from ..files import atomic_write, check_output
from .match_store import MatchStore, PairMatches
from .matching import Matcher
from .tracks import Tracks

SUFFIXES = (".h5", ".db")
CAMERAS = ("auto", "single", "per-folder", "per-image")

Pairs = Sequence[tuple[str, str]]
Progress = Callable[[int, int, int], None]

# Images on one side of a block of pairs. Three sides are in memory: the block's two, and one that is being replaced.
BLOCK = 50


@dataclass(frozen=True)
class FolderMatches:
    """The outcome of `match_folder`.

    images, pairs: numbers of those that were used; matches: number of matches of keypoints, over all pairs; verified: number of those that agree with
    a two-view geometry, None for .h5; broken: one line for each image that was skipped; files: the files written.
    """

    images: int
    pairs: int
    matches: int
    verified: int | None
    broken: list[str]
    files: list[Path]


def match_folder(
    folder: str | Path,
    pairs: Pairs,
    out: str | Path,
    *,
    matcher: Callable[[], Matcher],
    identity: Callable[[], dict[str, Any]] = dict,
    max_size: int = 640,
    threshold: float | None = None,
    align: bool = True,
    refine: bool = True,
    radius: float = 1.0,
    features: str | Path | None = None,
    cameras: str = "auto",
    progress: Progress | None = None,
    overwrite: bool = False,
    written: Callable[[list[Path]], object] = lambda paths: None,
) -> FolderMatches:
    """Match pairs of images of a folder.

    While it runs, it stores matches in OUT.partial. A run that follows an interrupted one matches only the remaining pairs, and those whose images
    changed. It refuses to continue with other settings, another model or another version of this package.

    At most 150 shrunk images are in memory: 0.14 GB at 640x480 pixels, 0.9 GB at 1600x1200.

    Args:
        folder: of images; pairs: of their names in it, each pair once.
        out: .h5 for hloc's matches, or .db for a COLMAP database with verified matches.
        matcher: returns the `Matcher`; called once, after the other options have been checked.
        identity: returns values for JSON that distinguish this matcher from others; called after ``matcher``.
        max_size, threshold, align, refine: as in `Matcher.match`. Images are shrunk first, so ``align`` cannot use the pixels of the original.
        radius: points of an image nearer to each other than this, in pixels of the images as matched, become one keypoint.
        features: for .h5, hloc's file of keypoints; by default features.h5 beside ``out``.
        cameras: for .db, which images share a camera: "auto", as their EXIF says, "single", "per-folder", "per-image".
        progress: called with (pairs done, all pairs, pairs matched by this run) before the first pair and after each.
        overwrite: replace a features.h5 that belongs to other matches.
        written: called with the complete new files before they get their names.

    Raises:
        ValueError, OSError, ImportError: bad options, or files that cannot be written. Broken images are skipped instead.
    """
    folder, out = Path(folder), check_output(out, SUFFIXES)
    colmap = out.suffix.lower() == ".db"
    if cameras not in CAMERAS:
        raise InputError(f"cameras is {cameras!r}, expected one of {', '.join(CAMERAS)}")
    if not 0 <= radius < float("inf"):
        raise InputError(f"radius is {radius}, expected 0 or more pixels")
    if colmap and features is not None:
        raise InputError(f"features is {features}, which belongs to .h5; a database holds the keypoints itself")
    if not colmap and cameras != "auto":
        raise InputError(f"cameras is {cameras}, which belongs to a .db; an .h5 has no cameras")
    require("pycolmap" if colmap else "h5py", "sfm")
    require("scipy.spatial", "sfm")
    feature_file = None if colmap else check_output(features or out.with_name("features.h5"), (".h5",))
    if feature_file is not None and feature_file.resolve() == out.resolve():
        raise InputError(f"{out} cannot hold both matches and features, expected two names")
    if features is None and not overwrite:
        _check_features_file(feature_file, out)
    if not pairs:
        raise InputError(f"{folder}: no pairs to match, expected at least two images")
    pairs = _normalised_pairs(folder, pairs)
    if not colmap:
        _check_hloc_names(pairs)
    fitted_size((MIN_SIDE, MIN_SIDE), max_size)
    if threshold is not None and not 0 <= threshold <= 1:
        raise InputError(f"threshold is {threshold}, expected 0..1")
    made = matcher()
    settings = {
        "version": __version__,
        "max_size": max_size,
        "threshold": threshold,
        "align": align,
        "refine": refine,
        **identity(),
    }
    store = MatchStore(out.with_name(out.name + ".partial"), settings)
    try:
        options = {"max_size": max_size, "threshold": threshold, "align": align, "refine": refine}
        unusable = _names_not_utf8(folder, pairs)
        if colmap:
            from .colmap import unreadable_images

            names = dict.fromkeys(name for pair in pairs for name in pair if name not in unusable)
            unusable |= unreadable_images(folder, names, cameras)
        done, broken, scales = _match_all(folder, pairs, store, made, options, progress, unusable)
        if not done:
            raise InputError(f"{folder}: no pair of images that can both be read; the first: {broken[0]}")
        tracks = Tracks(store, done, {name: radius * scale for name, scale in scales.items()})
        if feature_file is None:
            from .colmap import write_database

            verified = write_database(tracks, folder, out, cameras, written)
        else:
            verified = None
            if features is None and not overwrite:
                _check_features_file(feature_file, out)
            write_hloc(tracks, out, feature_file, written)
        matches = sum(len(rows) for _, _, rows in tracks)
    except BaseException:
        store.close()
        raise
    store.remove()
    files = [out] if feature_file is None else [out, feature_file]
    return FolderMatches(len(tracks.keypoints), len(done), matches, verified, broken, files)


def all_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pair each image with each later one."""
    return list(combinations(names, 2))


def write_hloc(
    tracks: Tracks, matches: Path, features: Path, written: Callable[[list[Path]], object] = lambda paths: None
) -> None:
    """Write hloc's two files: keypoints for each image, and for each pair matches0 and matching_scores0 (-1 and 0 where there is no match).

    Both are complete before either gets its name, and ``written`` is called with them.
    """
    h5py = require("h5py", "sfm")
    # Matches get their name first: see _check_features_file.
    with atomic_write(features) as features_written, atomic_write(matches) as matches_written:
        with h5py.File(features_written, "w") as file:
            for name, keypoints in tracks.keypoints.items():
                file.create_group(name).create_dataset("keypoints", data=keypoints)
        with h5py.File(matches_written, "w") as file:
            for name0, name1, rows in tracks:
                found = tracks.store.get((name0, name1))
                matches0 = np.full(len(tracks.keypoints[name0]), -1, np.int32)
                scores0 = np.zeros(len(matches0), np.float16)
                matches0[rows[:, 0]], scores0[rows[:, 0]] = rows[:, 1], found.confidence[rows[:, 2]]
                group = file.create_group(f"{_hloc_name(name0)}/{_hloc_name(name1)}")
                group.create_dataset("matches0", data=matches0)
                group.create_dataset("matching_scores0", data=scores0)
        written([features_written, matches_written])


def _hloc_name(name: str) -> str:
    """The name of an image in hloc's file of matches."""
    return name.replace("/", "-")


def _check_hloc_names(pairs: Pairs) -> None:
    """Check that no two images have one name in hloc's file of matches."""
    names: dict[str, str] = {}
    for name in dict.fromkeys(name for pair in pairs for name in pair):
        other = names.setdefault(_hloc_name(name), name)
        if other != name:
            raise InputError(
                f"{other} and {name} are both called {_hloc_name(name)} in hloc's matches; rename one of them, or write a .db"
            )


def _check_features_file(features: Path | None, out: Path) -> None:
    """Check that the file of keypoints does not belong to other matches."""
    if features is not None and features.exists() and not out.exists():
        raise InputError(
            f"{features} exists and {out} does not: it belongs to other matches; choose another name with --features, or remove it"
        )


def _normalised_pairs(folder: Path, pairs: Pairs) -> list[tuple[str, str]]:
    """Normalise the names of pairs in a folder, and drop pairs that come again, in either order."""
    names = {}
    for name in dict.fromkeys(name for pair in pairs for name in pair):
        names[name] = PurePath(os.path.relpath(folder / name, folder)).as_posix()
        if names[name].split("/")[0] in ("..", "."):
            raise InputError(f"{name!r} is not in {folder}, expected names of images in that folder")
    found: dict[frozenset[str], tuple[str, str]] = {}
    for name0, name1 in pairs:
        one, other = names[name0], names[name1]
        if one == other:
            raise InputError(f"{name0!r} and {name1!r} are the same image, expected a pair of two")
        found.setdefault(frozenset((one, other)), (one, other))
    return list(found.values())


def _names_not_utf8(folder: Path, pairs: Pairs) -> dict[str, str]:
    """The images whose names neither COLMAP's nor hloc's files can hold, by name, with a line that says why."""
    lines = {}
    for name in dict.fromkeys(name for pair in pairs for name in pair):
        try:
            name.encode()
        except UnicodeEncodeError:
            lines[name] = f"{folder / name}: its name is not UTF-8; rename it"
    return lines


def _in_blocks(pairs: Pairs) -> list[tuple[str, str]]:
    """Order the pairs so that each image is read only a few times: `BLOCK` images with `BLOCK` others at a time."""
    blocks: dict[str, int] = {}
    for pair in pairs:
        for name in pair:
            blocks.setdefault(name, len(blocks) // BLOCK)
    return sorted(pairs, key=lambda pair: sorted(blocks[name] for name in pair))


def _match_all(
    folder: Path,
    pairs: Pairs,
    store: MatchStore,
    matcher: Matcher,
    options: dict[str, Any],
    progress: Progress | None,
    unusable: dict[str, str],
) -> tuple[list[tuple[str, str]], list[str], dict[str, float]]:
    """Match the pairs that the store lacks.

    unusable: images that cannot be used, by name, with a line that says why; they are not read.

    Returns:
        the pairs that are done, a line for each image that was skipped, and for each other image the pixels of the file per matched pixel.
    """
    broken = dict(unusable)
    stamps: dict[str, str] = {}
    scales: dict[str, float] = {}

    @lru_cache(maxsize=3 * BLOCK)
    def read(name: str) -> tuple[np.ndarray, tuple[float, float], tuple[int, int]]:
        image = read_image(folder / name)
        return *resize_longest(image, options["max_size"], str(folder / name)), image.shape[:2]

    def known(name: str) -> bool:
        """Whether the image can be read; the first call for a name finds out."""
        if name not in scales and name not in broken:
            try:
                stat = (folder / name).stat()
                stamps[name] = f"{stat.st_size} {stat.st_mtime_ns}"
                scales[name] = 1 / min(read(name)[1])
            except (InputError, OSError) as error:
                broken[name] = str(error)
        return name in scales

    done, matched = set(), 0
    for number, pair in enumerate(_in_blocks(pairs)):
        if progress is not None:
            progress(number, len(pairs), matched)
        if not all(map(known, pair)):
            continue
        stamp = " ".join(stamps[name] for name in pair)
        if not store.has(pair, stamp):
            (image0, scale0, size0), (image1, scale1, size1) = (read(name) for name in pair)
            found = matcher.match(image0, image1, **options)
            points0, points1 = (
                stored_pixels(folder / name, (points + 0.5) / scale - 0.5, size)
                for name, points, scale, size in zip(
                    pair, (found.keypoints0, found.keypoints1), (scale0, scale1), (size0, size1), strict=True
                )
            )
            store.add(pair, stamp, PairMatches(points0, points1, found.confidence))
            matched += 1
        done.add(pair)
    if progress is not None:
        progress(len(pairs), len(pairs), matched)
    return [pair for pair in pairs if pair in done], list(broken.values()), scales
