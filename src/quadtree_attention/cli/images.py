"""What commands on many images share: files and folders found, a progress bar, broken files skipped, and where results go."""

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
    """One image of a command line.

    path: the file; name: what tells it from the others: its place in the folder that was given, or below the folder that all have in common.
    """

    path: Path
    name: PurePath


def find_images(sources: Iterable[str]) -> list[ImageFile]:
    """Files as they are, of folders all images in them and their folders, by name, and what fits patterns such as '*.jpg'; each once.

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
    """Where the result of each image goes: a file for one image, or a folder, in which results are named as the images.

    Images that differ in their suffix alone, a.jpg and a.png, keep it: their results are a.jpg.png and a.png.png.

    Args:
        images: what there is to do.
        target: a file that ends in one of ``suffixes``; or a folder, whose files end in the first of them.
        suffixes: of result files.

    Raises:
        ValueError: one file for several images; two images whose results would have one name.
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
    """The images with a result that is missing; all of them without ``skip_existing``.

    places: of the results of each image.
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
    """Read images one after another and call ``work`` with each as ``[H, W, 3]`` uint8 RGB; of several, a bar on stderr shows how many are done.

    Of several images, one that cannot be read, that needs too much memory, or that ``work`` raises an InputError or OSError for, is left out, with a
    line on stderr.

    Args:
        images: what there is to do.
        work: prints and keeps the results of one image.
        finish: writes what ``work`` kept; called at the end, and also where an interrupt, or a bug, ends the work early after an image was done.
        quiet: no bar.

    Returns:
        the exit status of the command: 0, or 1 if images were left out.

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
                        sys.stdout.flush()  # whoever reads on sees each result at once; if they have gone, we stop
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
    # What is printed meanwhile goes above the bar; unless it goes to a file, which it must reach as it is.
    with progress.Progress(*columns, console=console, redirect_stdout=sys.stdout.isatty()) as bar:
        yield bar.track(images)


def _expanded(source: str) -> list[str]:
    """The files and folders that a pattern stands for, where the shell left that to us; a name of a file as it is."""
    if Path(source).exists() or not any(mark in source for mark in "*?["):
        return [source]
    found = sorted(glob(source, recursive=True))  # noqa: PTH207 (a Path's knows no patterns that begin at the root)
    if not found:
        raise FileNotFoundError(f"{source} fits no file, expected images or folders of them")
    return found
