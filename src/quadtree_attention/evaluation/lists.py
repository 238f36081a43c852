"""Lists of image pairs with known geometry, as text, and HPatches; sets of pairs with poses are in pose_sets.py.

A list is checked when it is read: a malformed line or a missing image ends in one line that names the file and the line. Images themselves are
read when a pair is used.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from ..data.arrays import as_numbers, camera_matrix, pose_matrix, read_npy, read_numbers
from ..data.decoding import opened
from ..data.lists import existing, lines_of, nonempty
from ..data.matching.pairs import HomographyPair, PosePair, Size, StereoPair
from ..data.warp import resize_matrix, with_short_side
from ..errors import InputError

_OPENCV_MATRIX = re.compile(
    r"rows[:>]\s*(\d+)\s*(?:</rows>\s*<)?cols[:>]\s*(\d+)\s*(?:</cols>\s*<)?"
    r'dt[:>]\s*"?[a-z]"?\s*(?:</dt>\s*<)?data[:>]\s*\[?([^]<]*)'
)


def homography_list(path: str | Path, root: str | Path | None = None) -> list[HomographyPair]:
    """A text list: 'image0 image1 h11 .. h33' or 'image0 image1 file-of-H' a line.

    Paths are relative to root (the list's folder if None); quote those with spaces; # starts a comment. A file of H is
    text (3 x 3 numbers), .npy, or OpenCV's .xml/.yml with one matrix.
    """
    path = Path(path)
    pairs = []
    for where, words in lines_of(path):
        if len(words) not in (3, 11):
            raise InputError(
                f"{where}: {len(words)} entries, expected 11: image0 image1 h11 .. h33, or 3: image0 image1 file-of-H"
            )
        image0, image1 = (existing(name, root or path.parent, where) for name in words[:2])
        if len(words) == 11:
            H = _matrix(_floats(words[2:], where), where)
        else:
            H = read_homography(existing(words[2], root or path.parent, where))
        pairs.append(HomographyPair(name=f"{words[0]} {words[1]}", image0=image0, image1=image1, homography=H))
    return nonempty(pairs, path)


def hpatches(folder: str | Path, short_side: int | None = 480) -> list[HomographyPair]:
    """The layout of HPatches: i_* and v_* folders with 1.ppm .. 6.ppm and H_1_2 .. H_1_6.

    short_side: images are resized so that their shorter side has this many pixels, and errors are measured in those
    pixels, as is usual for this data set; None keeps them.
    """
    folder = Path(folder)
    scenes = sorted(p for p in folder.glob("[iv]_*") if p.is_dir())
    if not scenes:
        raise InputError(f"{folder}: no folders i_* or v_* here, expected the unpacked HPatches sequences")
    pairs = []
    for scene in scenes:
        images = {p.stem: p for p in sorted(scene.iterdir()) if p.suffix.lower() in (".ppm", ".png", ".jpg")}
        truths = sorted(scene.glob("H_1_*"))
        if not truths:
            raise FileNotFoundError(f"{scene}: no files H_1_2 .. H_1_6 here, expected a homography for each pair")
        for truth in truths:
            other = truth.name.removeprefix("H_1_")
            for stem in ("1", other):
                if stem not in images:
                    raise FileNotFoundError(f"{scene}: image {stem}.ppm is missing, needed for {truth.name}")
            H, size0, size1 = read_homography(truth), None, None
            if short_side is not None:
                old0, old1 = _image_size(images["1"]), _image_size(images[other])
                size0, size1 = with_short_side(old0, short_side), with_short_side(old1, short_side)
                H = resize_matrix(old1, size1) @ H @ np.linalg.inv(resize_matrix(old0, size0))
            name = f"{scene.name}/1-{other}"
            pairs.append(
                HomographyPair(
                    name=name, image0=images["1"], image1=images[other], size0=size0, size1=size1, homography=H
                )
            )
    return pairs


def pose_list(path: str | Path, root: str | Path | None = None) -> list[PosePair]:
    """A text list as SuperGlue's: 'image0 image1 turns0 turns1 K0(9) K1(9) T_0to1(16)' a line, 38 entries.

    Matrices are row by row; K belongs to the image as stored. Paths are relative to root (the list's folder if None).
    """
    path = Path(path)
    pairs = []
    for where, words in lines_of(path):
        if len(words) != 38:
            raise InputError(
                f"{where}: {len(words)} entries, expected 38: image0 image1 turns0 turns1 K0(9) K1(9) T_0to1(16)"
            )
        image0, image1 = (existing(name, root or path.parent, where) for name in words[:2])
        numbers = _floats(words[2:], where)
        if not set(numbers[:2]) <= {0, 1, 2, 3}:
            raise InputError(f"{where}: turns are {words[2]} and {words[3]}, expected quarter turns 0, 1, 2 or 3")
        pairs.append(
            PosePair(
                name=f"{words[0]} {words[1]}",
                image0=image0,
                image1=image1,
                turns0=int(numbers[0]),
                turns1=int(numbers[1]),
                K0=camera_matrix(numbers[2:11], f"{where}: K0"),
                K1=camera_matrix(numbers[11:20], f"{where}: K1"),
                T_0to1=pose_matrix(numbers[20:], f"{where}: T_0to1"),
            )
        )
    return nonempty(pairs, path)


def stereo_list(path: str | Path, root: str | Path | None = None) -> list[StereoPair]:
    """A text list: 'left right disparity [scale]' a line.

    The disparity is .npy, .npz (its first array), .pfm, or an image of one channel; the file's values are divided by
    scale (1 if left out); 0 and values that are not finite mean unknown. Paths are relative to root (the list's folder
    if None).
    """
    path = Path(path)
    pairs = []
    for where, words in lines_of(path):
        if len(words) not in (3, 4):
            raise InputError(f"{where}: {len(words)} entries, expected 'left right disparity' or '... scale'")
        left, right, disparity = (existing(name, root or path.parent, where) for name in words[:3])
        scale = float(_floats(words[3:], where)[0]) if len(words) == 4 else 1.0
        if not scale > 0:
            raise InputError(f"{where}: scale is {words[3]}, expected a positive number, such as 256 for KITTI's PNG")
        name = f"{words[0]} {words[1]}"
        pairs.append(StereoPair(name=name, image0=left, image1=right, disparity=disparity, scale=scale))
    return nonempty(pairs, path)


def read_homography(path: str | Path) -> np.ndarray:
    """A homography [3, 3] from text, .npy, or OpenCV's .xml/.yml with one matrix."""
    path = Path(path)
    if path.suffix == ".npy":
        return _matrix(read_npy(path), str(path))
    if path.suffix in (".xml", ".yml", ".yaml"):
        return _matrix(_opencv_matrix(path), str(path))
    return _matrix(read_numbers(path, "a homography"), str(path))


def _opencv_matrix(path: Path) -> Any:
    """The first matrix of OpenCV's .xml or .yml; None if there is none. OpenCV's own reader ends the process for some damaged files."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None
    except OSError as error:
        raise type(error)(f"{path} cannot be read: {error.strerror or error}") from None
    found = _OPENCV_MATRIX.search(text)
    if not found or (found[1], found[2]) != ("3", "3"):
        return None
    return found[3].replace(",", " ").split()


def _floats(words: list[str], where: str) -> np.ndarray:
    try:
        values = np.array([float(word) for word in words])
    except ValueError as error:
        raise InputError(f"{where}: {str(error)[:100]}, expected numbers after the file names") from None
    if not np.isfinite(values).all():
        raise InputError(f"{where}: numbers that are not finite, expected a pose or homography that is known")
    return values


def _matrix(values: Any, where: str) -> np.ndarray:
    H = as_numbers(values)
    with np.errstate(all="ignore"):  # of products that are beyond float64
        good = H.size == 9 and np.isfinite(H).all() and abs(np.linalg.det(H.reshape(3, 3))) >= 1e-12
    if not good:
        raise InputError(f"{where}: not a homography, expected 3 x 3 finite numbers of an invertible matrix")
    return H.reshape(3, 3)


def _image_size(path: Path) -> Size:
    """(width, height), from the file's head alone."""
    with opened(path) as image:
        return image.size
