"""Output files: checked before the long work, and written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError


def check_output(path: str | Path, suffixes: Collection[str]) -> Path:
    """Return ``path`` as a Path after making sure that it can be written; leaves nothing behind.

    Raises:
        ValueError: its suffix is not one of ``suffixes``.
        OSError: it is a folder, or its folder is missing or cannot be written to.
    """
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise InputError(f"{path}: unknown suffix {path.suffix!r}, expected {' or '.join(suffixes)}")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, expected the name of a file to write")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: its folder {path.parent} does not exist; create it first")
    with atomic_write(path) as temporary:
        temporary.unlink()
    return path


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give a temporary file in the folder of ``path`` to write to; it takes the name ``path`` if all went well, and is removed otherwise.

    The temporary file has the suffix of ``path`` and exists, empty. If the body removes it, ``path`` stays as it was.
    """
    path = Path(os.path.realpath(path))
    # By chance: in a container, a process that was killed had the same number. tempfile's own files are closed to all but their owner.
    temporary = path.with_name(f".{path.stem}.{os.urandom(6).hex()}{path.suffix}")
    try:
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise type(error)(f"{path} cannot be written: {error.strerror}") from None
    try:
        yield temporary
        if temporary.exists():
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
