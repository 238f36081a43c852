"""Shared by commands on many images: finds images, shows a progress bar, skips broken files, and names result files."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path, PurePath
from typing import Annotated

import numpy as np

from ..errors import InputError, out_of_memory
from ..extras import require
from ..files import check_output, checked_suffix, list_photographs, no_room
from .app import note, typer

SKIP_EXISTING = Annotated[
    bool, typer.Option("--skip-existing", help="Skip images whose results already exist in the output folder.")
]


@dataclass(frozen=True)
class ImageFile:
    """One image given on the command line.

    path: the file; name: its path relative to the folder that was given, or to the folder that all images share.
    """

    path: Path
    name: PurePath


def find_images(sources: Iterable[str]) -> list[ImageFile]:
    """List each image once: given files, all images in given folders and below, sorted by name, and those that match patterns such as '*.jpg'.

    Raises:
        OSError: a source does not exist.
        ValueError: a folder without images.
    """
    found: dict[Path, ImageFile] = {}
    for source in (Path(path) for given in sources for path in _expanded(given)):
        if not source.exists():
            raise FileNotFoundError(f"{source} does not exist, expected an image file or a folder of images")
        inside = [source]
        if source.is_dir():
            inside = list_photographs(source)
        for path in inside:
            name = path.relative_to(source) if source.is_dir() else PurePath(path.name)
            found.setdefault(path.resolve(), ImageFile(path, name))
    images = list(found.values())
    if len({image.name for image in images}) < len(images):
        places = [os.path.abspath(image.path) for image in images]  # noqa: PTH100 (links stay as they are named)
        shared = os.path.commonpath(places)
        return [
            replace(image, name=PurePath(place).relative_to(shared))
            for image, place in zip(images, places, strict=True)
        ]
    return images


def result_paths(images: Sequence[ImageFile], target: str, suffixes: Sequence[str]) -> list[Path]:
    """Name the result file of each image: a file for one image, or files in a folder, named like the images.

    Images that differ only in their suffix, a.jpg and a.png, keep it: their results are a.jpg.png and a.png.png.

    Args:
        images: the images to process.
        target: a file that ends in one of ``suffixes``; or a folder, whose files end in the first of them.
        suffixes: of result files.

    Raises:
        ValueError: one file for several images; two images whose results would have the same name.
        OSError: a file where a folder is needed.
    """
    folder = Path(target)
    if folder.suffix.lower() in suffixes and not folder.is_dir():
        if len(images) > 1:
            raise InputError(f"{target} is one file for {len(images)} images, expected the name of a folder")
        return [check_output(folder, suffixes)]
    if folder.suffix and not folder.is_dir() and len(images) == 1:
        checked_suffix(folder, suffixes, ", or the name of a folder")
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{target} is a file, expected a folder for the results of {len(images)} images")
    stems = Counter(image.name.with_suffix("") for image in images)
    taken: dict[Path, ImageFile] = {}
    for image in images:
        alone = stems[image.name.with_suffix("")] == 1
        name = image.name.with_suffix(suffixes[0]) if alone else image.name.with_name(image.name.name + suffixes[0])
        other = taken.setdefault(folder / name, image)
        if other is not image:
            raise InputError(
                f"results of {other.path} and {image.path} would both be {folder / name}; rename one of them"
            )
    return list(taken)


def left_to_do(
    images: Sequence[ImageFile], places: Sequence[Sequence[Path]], skip_existing: bool, quiet: bool
) -> list[ImageFile]:
    """The images that still lack a result; without ``skip_existing``, all of them.

    places: the result files of each image.
    """
    if not skip_existing:
        return list(images)
    if not any(places):
        raise InputError("--skip-existing is for results in folders; name one, or leave it out")
    left = [image for image, results in zip(images, places, strict=True) if not all(path.exists() for path in results)]
    if len(left) < len(images):
        note(f"{len(images) - len(left)} of {len(images)} images have their results already", quiet)
    return left


def each_image(
    images: Sequence[ImageFile],
    work: Callable[[ImageFile, np.ndarray], None],
    finish: Callable[[], None] | None = None,
    *,
    quiet: bool = False,
) -> int:
    """Read images one after another, and call ``work`` with each as ``[H, W, 3]`` uint8 RGB; for several, with a progress bar on stderr.

    If there are several, an image is skipped with a line on stderr if it cannot be read, needs too much memory, or makes ``work`` raise an
    InputError or OSError.

    Args:
        images: the images to process.
        work: prints and stores the results of one image.
        finish: writes what ``work`` stored; called at the end, and also after an interrupt or a bug, if at least one image was done.
        quiet: show no bar.

    Returns:
        The exit status of the command: 0, or 1 if images were skipped.

    Raises:
        ValueError, OSError: what is wrong with the only image.
    """
    from ..data.images import read_image

    several, done, status = len(images) > 1, 0, 0
    try:
        with _bar(images) if several and not quiet else nullcontext(images) as bar:
            for image in bar:
                try:
                    work(image, read_image(image.path))
                    if several:
                        sys.stdout.flush()  # show each result at once, and stop if the reader has gone
                except Exception as error:
                    of_this_image = isinstance(error, (InputError, OSError)) or out_of_memory(error)
                    if not several or not of_this_image or isinstance(error, BrokenPipeError) or no_room(error):
                        raise
                    message = " ".join(str(error).split()) if not out_of_memory(error) else "out of memory"
                    note("left out: " + (message if str(image.path) in message else f"{image.path}: {message}"))
                    status = 1
                else:
                    done += 1
    except BaseException:
        if done and finish is not None:
            finish()
        raise
    if finish is not None:
        finish()
    return status


@contextmanager
def _bar(images: Sequence[ImageFile]) -> Iterator[Iterable[ImageFile]]:
    progress = require("rich.progress", "vision")
    console = require("rich.console", "vision").Console(stderr=True)
    columns = (
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("images"),
        progress.TimeRemainingColumn(),
    )
    # Lines printed meanwhile go above the bar; output to a file must not be changed.
    with progress.Progress(*columns, console=console, redirect_stdout=sys.stdout.isatty()) as bar:
        yield bar.track(images)


def _expanded(source: str) -> list[str]:
    """Expand a pattern that the shell did not expand to files and folders; the name of an existing file stays as it is."""
    if Path(source).exists() or not any(mark in source for mark in "*?["):
        return [source]
    found = sorted(glob(source, recursive=True))  # noqa: PTH207 (a Path's knows no patterns that begin at the root)
    if not found:
        raise FileNotFoundError(f"{source} matches no file, expected images or folders of them")
    return found
