"""What a command may write: never over an input, and over another file only if a command of ours wrote it, or with --overwrite.

What a file holds cannot tell who wrote it: a .pfm or .csv has no place for a mark. So commands keep a list of what they wrote, a digest of each
file's content, in ~/.cache/quadtree_attention (or $XDG_CACHE_HOME). A file that was changed since is no longer ours, and one that was moved still is.
Without the list, as on another machine, everything that is there counts as someone else's.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from types import TracebackType

from ..errors import InputError
from ..files import atomic_write, check_output

_LONGEST = 2**22  # bytes of the list: then its older half is forgotten


class Outputs:
    """The files that one command was asked to write. Use it as a context around the work; what was written inside is remembered at the end.

    Args:
        inputs: what the command reads, as far as it is known; files that do not exist, such as names of models, do not matter.
        overwrite: whether files that are someone else's may be replaced. Inputs may not.
    """

    def __init__(self, inputs: Iterable[str | Path], *, overwrite: bool = False) -> None:
        self._inputs = {key: str(path) for path in inputs if (key := _identity(Path(path))) is not None}
        self._overwrite = overwrite
        self._claimed: dict[Path, tuple[str, tuple[int, ...] | None]] = {}  # real path -> option, and state before
        self._made: list[Path] = []

    def file(self, option: str, path: str | Path | None, suffixes: Collection[str]) -> Path | None:
        """``path``, as the option of that name has it, after making sure that it may and can be written; None stays None.

        Raises:
            InputError: its suffix; it is an input, what another option writes, or someone else's.
            OSError: it cannot be written.
        """
        if path is None:
            return None
        path = check_output(path, suffixes)
        self._claim(option, path)
        return path

    def files(self, option: str, paths: Iterable[Path], suffixes: Collection[str]) -> None:
        """Make sure that all of these may be written, as `file` does; folders that are missing are made."""
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
    """Whether a file is, byte for byte, what a command of ours wrote."""
    return _digest(path) in _known()


def remember(paths: Iterable[Path]) -> None:
    """Put files on the list of what we wrote. Where there is no place for a list, nothing is remembered."""
    digests = "".join(f"{_digest(path)}\n" for path in paths)
    if not digests:
        return
    try:
        place = _list()
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open(
            "a", encoding="ascii"
        ) as file:  # one write: of two commands at a time neither cuts the other's lines
            file.write(digests)
        if place.stat().st_size > _LONGEST:
            lines = place.read_text(encoding="ascii").splitlines(keepends=True)
            with atomic_write(place) as temporary:
                temporary.write_text("".join(lines[len(lines) // 2 :]), encoding="ascii")
    except (OSError, RuntimeError):  # the latter: nobody's home is known
        return


def _known() -> set[str]:
    try:
        return set(_list().read_text(encoding="ascii").split())
    except (OSError, RuntimeError, UnicodeDecodeError):
        return set()


def _list() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quadtree_attention" / "written.txt"


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _identity(path: Path) -> tuple[int, int] | None:
    """What two names of one file share; None if there is no such file."""
    try:
        stat = path.stat()
    except (OSError, ValueError):  # the latter: what is no path at all
        return None
    return (stat.st_dev, stat.st_ino)


def _state(path: Path) -> tuple[int, ...] | None:
    """What changes when a file is written anew."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
