"""Protects files from commands: they never overwrite an input, and overwrite other files only if quadtree wrote them, or with --overwrite.

The content of a file does not tell who wrote it: a .pfm or .csv has no place for a mark. So commands keep a list of digests of what they
wrote, in ~/.cache/quadtree_attention (or $XDG_CACHE_HOME). A file that was changed since then counts as the user's; one that was moved does not.
Without the list, as on another machine, all existing files count as the user's.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from types import TracebackType

from ..errors import InputError
from ..files import atomic_write, check_output

_LONGEST = 2**22  # bytes of the list; beyond, its older half is dropped


class Outputs:
    """The output files of one command. Use it as a context around the work; at the end, it remembers the files that were written.

    Args:
        inputs: the files that the command reads, as far as they are known; names that are not files, such as those of models, are ignored.
        overwrite: whether the user's files may be replaced. Inputs may not.
    """

    def __init__(self, inputs: Iterable[str | Path], *, overwrite: bool = False) -> None:
        self._inputs = {key: str(path) for path in inputs if (key := _identity(Path(path))) is not None}
        self._overwrite = overwrite
        self._claimed: dict[Path, tuple[str, tuple[int, ...] | None]] = {}  # real path -> option, and state before
        self._made: list[Path] = []

    def file(self, option: str, path: str | Path | None, suffixes: Collection[str]) -> Path | None:
        """Check that the file of an option may and can be written, and return its path; None stays None.

        Raises:
            InputError: a wrong suffix; an input, the file of another option, or one of the user's files.
            OSError: it cannot be written.
        """
        if path is None:
            return None
        path = check_output(path, suffixes)
        self._claim(option, path)
        return path

    def files(self, option: str, paths: Iterable[Path], suffixes: Collection[str]) -> None:
        """Check that all of these files may be written, as `file` does; missing folders are created."""
        checked: set[Path] = set()
        for path in paths:
            if path.parent not in checked:
                self._make(path.parent)
                check_output(path, suffixes)
                checked.add(path.parent)
            self._claim(option, path)

    def _claim(self, option: str, path: Path) -> None:
        real = Path(os.path.realpath(path))
        if real in self._claimed:
            other = self._claimed[real][0]
            raise InputError(f"{other} and {option} are both {path}, expected another name for one of them")
        key = _identity(real)
        if key is not None and key in self._inputs:
            raise InputError(
                f"{option} is {path}, which is an input ({self._inputs[key]}), expected another name for it"
            )
        if key is not None and not self._overwrite and real.stat().st_size and not was_written(real):
            raise InputError(
                f"{path} exists, and quadtree did not write it or it was changed since; choose another name for {option}, "
                "or add --overwrite to replace it"
            )
        self._claimed[real] = option, _state(real)

    def _make(self, folder: Path) -> None:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        above = next(path for path in (folder, *folder.parents) if path.exists())
        if not above.is_dir():
            raise InputError(f"{above} is a file, expected a folder, or the name of a new one")
        folder.mkdir(parents=True, exist_ok=True)
        self._made.extend(missing)

    def __enter__(self) -> Outputs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        remember(path for path, (_, before) in self._claimed.items() if _state(path) not in (None, before))
        for folder in sorted(set(self._made), key=lambda path: -len(path.parts)):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def was_written(path: Path) -> bool:
    """Whether a quadtree command wrote this file, and nobody changed it since."""
    return _digest(path) in _known()


def remember(paths: Iterable[Path]) -> None:
    """Add files to the list of those that quadtree wrote. If the list cannot be written, nothing is remembered."""
    digests = "".join(f"{_digest(path)}\n" for path in paths)
    if not digests:
        return
    try:
        place = written_list()
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open(
            "a", encoding="ascii"
        ) as file:  # in one write, so that two commands at a time do not mix their lines
            file.write(digests)
        if place.stat().st_size > _LONGEST:
            lines = place.read_text(encoding="ascii").splitlines(keepends=True)
            with atomic_write(place) as temporary:
                temporary.write_text("".join(lines[len(lines) // 2 :]), encoding="ascii")
    except (OSError, RuntimeError):  # the latter: the home folder is unknown
        return


def _known() -> set[str]:
    try:
        return set(written_list().read_text(encoding="ascii").split())
    except (OSError, RuntimeError, UnicodeDecodeError):
        return set()


def written_list() -> Path:
    """The file with the list of digests."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quadtree_attention" / "written.txt"


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _identity(path: Path) -> tuple[int, int] | None:
    """Identify a file whatever its name; None if there is no such file."""
    try:
        stat = path.stat()
    except (OSError, ValueError):  # the latter: not a path at all
        return None
    return (stat.st_dev, stat.st_ino)


def _state(path: Path) -> tuple[int, ...] | None:
    """Values that change when a file is written again."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
