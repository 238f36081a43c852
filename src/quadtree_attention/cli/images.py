"""What commands on many images share: files and folders found, a progress bar, broken files skipped, and where results go."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np

from ..errors import InputError
from ..extras import require
from ..files import check_output
from ..formats import IMAGE_SUFFIXES


@dataclass(frozen=True)
class ImageFile:
    """One image of a command line.

    path: the file; name: the path as given, or inside the folder that was given.
    """

    path: Path
    name: PurePath


def find_images(sources: Iterable[str]) -> list[ImageFile]:
    """Files as they are, of folders all images in them and their folders, by name; what was given twice comes once.

    Raises:
        OSError: a source does not exist.
        ValueError: a folder without images.
    """
    found: dict[Path, ImageFile] = {}
    for source in map(Path, sources):
        if not source.exists():
            raise FileNotFoundError(f"{source} does not exist, expected an image file or a folder of images")
        inside = [source]
        if source.is_dir():
            inside = sorted(
                path
                for path in source.rglob("*")
                if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and not path.name.startswith(".")
            )
            if not inside:
                raise InputError(f"{source} has no images, expected files that end in {', '.join(IMAGE_SUFFIXES)}")
        for path in inside:
            name = path.relative_to(source) if source.is_dir() else PurePath(path.name)
            found.setdefault(path.resolve(), ImageFile(path, name))
    return list(found.values())


def result_paths(images: Sequence[ImageFile], target: str, suffixes: Sequence[str]) -> list[Path]:
    """Where the result of each image goes: a file for one image, or a folder, in which results are named as the images.

    Folders are made if they are missing.

    Args:
        images: what there is to do.
        target: a file that ends in one of ``suffixes``; or a folder, whose files end in the first of them.
        suffixes: of result files.

    Raises:
        ValueError: one file for several images; two images whose results would have one name; an image would be overwritten.
        OSError: a place that cannot be written to.
    """
    folder = Path(target)
    if folder.suffix.lower() in suffixes and not folder.is_dir():
        if len(images) > 1:
            raise InputError(f"{target} is one file for {len(images)} images, expected the name of a folder")
        paths = [folder]
    elif folder.suffix and not folder.is_dir() and len(images) == 1:
        raise InputError(
            f"{target}: unknown suffix {folder.suffix!r}, expected {' or '.join(suffixes)}, or the name of a folder"
        )
    else:
        paths = [folder / image.name.with_suffix(suffixes[0]) for image in images]
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"{target} is a file, expected a folder for the results of {len(images)} images")
    taken: dict[Path, ImageFile] = {}
    sources = {image.path.resolve() for image in images}
    for image, path in zip(images, paths, strict=True):
        if path in taken:
            raise InputError(f"results of {taken[path].path} and {image.path} would both be {path}; rename one of them")
        if path.resolve() in sources:
            raise InputError(f"{path} would be overwritten by the result, expected another name for it")
        taken[path] = image
    if paths != [folder]:
        for parent in sorted({path.parent for path in paths}):
            parent.mkdir(parents=True, exist_ok=True)
    for path in {path.parent: path for path in paths}.values():
        check_output(path, suffixes)
    return paths


def each_image(images: Sequence[ImageFile], work: Callable[[ImageFile, np.ndarray], None]) -> int:
    """Read images one after another and call ``work`` with each as ``[H, W, 3]`` uint8 RGB; of several, a bar on stderr shows how many are done.

    Of several images, one that cannot be read, or that ``work`` raises an InputError or OSError for, is reported on stderr and left out.

    Returns:
        the exit status of the command: 0, or 1 if images were left out.

    Raises:
        ValueError, OSError: what is wrong with the only image.
    """
    from ..data.images import read_image

    if len(images) == 1:
        work(images[0], read_image(images[0].path))
        return 0
    progress = require("rich.progress", "vision")
    console = require("rich.console", "vision").Console(stderr=True)
    columns = (
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("images"),
        progress.TimeRemainingColumn(),
    )
    status = 0
    # What is printed meanwhile goes above the bar; unless it goes to a file, which it must reach as it is.
    with progress.Progress(*columns, console=console, redirect_stdout=sys.stdout.isatty()) as bar:
        for image in bar.track(images):
            try:
                work(image, read_image(image.path))
            except (InputError, OSError) as error:
                message = " ".join(str(error).split())
                named = message if str(image.path) in message else f"{image.path}: {message}"
                print(f"quadtree: left out: {named}", file=sys.stderr)
                status = 1
    return status
