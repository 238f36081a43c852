"""Files: finds images in folders, checks outputs before the long work, and writes them whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError, InputWarning
from .formats import IMAGE_SUFFIXES, PHOTO_SUFFIXES


def check_output(path: str | Path, suffixes: Collection[str]) -> Path:
    """Return ``path`` as a Path after checking that it can be written; leaves nothing behind.

    Raises:
        ValueError: its suffix is not one of ``suffixes``.
        OSError: it is a folder, or its folder is missing or cannot be written to.
    """
    path = Path(path)
    checked_suffix(path, suffixes)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, expected the name of a file to write")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: its folder {path.parent} does not exist; create it first")
    with atomic_write(path) as temporary:
        temporary.unlink()
    return path


def checked_suffix(path: str | Path, suffixes: Collection[str], instead: str = "") -> str:
    """The suffix of ``path`` in lower case.

    Raises:
        InputError: it is not one of ``suffixes``. ``instead`` ends the message: what else could be given.
    """
    suffix = Path(path).suffix
    if suffix.lower() not in suffixes:
        raise InputError(f"{path}: unknown suffix {suffix!r}, expected {' or '.join(suffixes)}{instead}")
    return suffix.lower()


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Context with a temporary file in the folder of ``path``. It is renamed to ``path`` if the body succeeds, and removed otherwise.

    The temporary file is empty and has the suffix of ``path``. If the body removes it, ``path`` is not changed.

    Raises:
        OSError: it cannot be written, or the disk is full, in one line that names ``path``.
    """
    path = Path(os.path.realpath(path))
    # A random name: in a container, process ids repeat after a kill. Files of tempfile can be read only by their owner.
    temporary = path.with_name(f".{path.stem}.{os.urandom(6).hex()}{path.suffix}")
    try:
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise type(error)(f"{path} cannot be written: {error.strerror}") from None
    try:
        yield temporary
        if temporary.exists():
            temporary.replace(path)
    except OSError as error:
        # The system's error on writing names no file. Libraries report a full disk in their own words, or that fewer bytes were written.
        if no_room(error) or (error.errno is None and shutil.disk_usage(path.parent).free < 2**20):
            code = error.errno or errno.ENOSPC
            raise OSError(code, os.strerror(code), str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def no_room(error: BaseException) -> bool:
    """Whether an exception means a full disk, an exhausted quota, or a file that grew too large."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to a file in UTF-8, without changing line ends, whole or not at all.

    Bytes of file names that are not UTF-8 are written as ``\\udcfc``, which JSON readers understand.
    """
    with atomic_write(path) as temporary:
        temporary.write_bytes(printable(text).encode())


def printable(text: str) -> str:
    """Make ``text`` encodable: bytes of file names that are not UTF-8 are spelled ``\\udcfc``."""
    return text.encode("utf-8", "backslashreplace").decode()


def walk(folder: str | Path) -> list[Path]:
    """All files in a folder and below it, sorted, except hidden ones. Links to folders are followed, but no folder is entered twice."""
    found: list[Path] = []
    seen: set[Path] = set()
    folders: list[Path] = [Path(folder)]
    links: list[Path] = []
    while folders or links:
        here = (
            folders.pop() if folders else links.pop(0)
        )  # links last, so that files in the folder itself keep their own names
        if (real := here.resolve()) in seen:
            continue
        seen.add(real)
        for path in sorted(here.iterdir()):
            if path.name.startswith("."):
                continue
            if path.is_dir():
                (links if path.is_symlink() else folders).append(path)
            elif path.is_file():
                found.append(path)
    return sorted(found)


def list_photographs(folder: str | Path) -> list[Path]:
    """The photographs among the files that `walk` finds, by their suffix. An InputWarning counts those of kinds that cannot be read, such as .heic.

    Raises:
        FileNotFoundError, NotADirectoryError: no such folder.
        InputError: it holds none.
    """
    folder = Path(folder).expanduser()
    if not folder.exists():
        raise FileNotFoundError(f"{folder} does not exist, expected a folder of photographs")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file, expected a folder of photographs")
    files = walk(folder)
    others = Counter(path.suffix.lower() for path in files if path.suffix.lower() in PHOTO_SUFFIXES)
    found = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
    if others and not found:
        raise InputError(
            f"{folder} holds only photographs of kinds that cannot be read: {kinds}; convert them to .jpg or .png"
        )
    if others:
        warnings.warn(
            InputWarning(
                f"{folder}: photographs of kinds that cannot be read are left out: {kinds}; convert them to .jpg or .png"
            ),
            stacklevel=2,
        )
    if not found:
        raise InputError(f"{folder} holds no photographs ({', '.join(IMAGE_SUFFIXES)}) in it or below")
    return found
