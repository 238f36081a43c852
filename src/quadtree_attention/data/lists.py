"""Reads lists from text files: names of images, scenes or classes, one or more per line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import InputError

_WORD = re.compile(r"""\"([^\"]+?)\"(?=[ \t]|$)|'(.+?)'(?=[ \t]|$)|([^ \t]+)""")
_COMMENT = re.compile(r"(^|(?<=[ \t]))#.*")
_LONGEST_NAME = 4096
_LARGEST = 2**30  # bytes: tens of millions of lines


def lines_in(path: Path) -> list[str]:
    """The stripped lines of a text file in UTF-8, with or without a byte order mark.

    Raises:
        InputError: not a text in UTF-8.
        OSError: it cannot be read.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise InputError(f"{path} is a list of {path.stat().st_size} bytes, expected {_LARGEST} at the very most")
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a text file in UTF-8, expected a list; save it as UTF-8") from None
    except OSError as error:
        raise type(error)(f"{path} cannot be read: {error.strerror or error}") from None
    return [
        line.strip(" \t") for line in re.split(r"\r\n|\n|\r", text)
    ]  # not at Unicode's other ends of lines, which are part of names


def lines_of(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield ('file:line', words) for each line of a text list that is not empty.

    Words are separated by spaces or tabs. A word that contains spaces must be quoted, single or double; quotes inside a word, as in it's.jpg, are
    part of it. A # at the beginning of a word starts a comment; within one, as in x#1.jpg, it does not.
    """
    for number, line in enumerate(lines_in(path), 1):
        words = [next(word for word in found if word) for found in _WORD.findall(_COMMENT.sub("", line))]
        if words:
            yield f"{path}:{number}", words


def image_pairs(path: str | Path, root: str | Path) -> list[tuple[str, str]]:
    """A text list as hloc's, 'image0 image1' a line -> names of images in the folder root; a pair given twice, in either order, counts once."""
    path = Path(path)
    pairs: dict[frozenset[str], tuple[str, str]] = {}
    for where, words in lines_of(path):
        if len(words) != 2 or words[0] == words[1]:
            raise InputError(
                f"{where}: {' '.join(words)[:100]!r}, expected the names of two images: image0 image1; those with spaces in quotes"
            )
        for name in words:
            existing(name, root, where)
        pairs.setdefault(frozenset(words), (words[0], words[1]))
    return nonempty(list(pairs.values()), path)


def existing(name: str, folder: str | Path, where: str) -> Path:
    """The path of a file in a folder; if it is missing, the error says ``where`` it was asked for."""
    if len(name) > _LONGEST_NAME or "\0" in name:
        raise InputError(f"{where}: {name[:40]!r}... of {len(name)} characters, expected the name of a file")
    path = Path(folder) / name
    if not path.is_file():
        raise FileNotFoundError(f"{where}: {path} does not exist")
    return path


def folder_with(root: Path, places: Iterable[str], name: str) -> Path:
    """The first of the folders under root that has a file of this name or pattern."""
    places = tuple(places)
    for place in places:
        if any((root / place).glob(name)) if "*" in name else (root / place / name).is_file():
            return root / place
    tried = ", ".join(str(root / place) for place in places)
    raise FileNotFoundError(f"{name} not found, expected it in one of: {tried}")


def nonempty(pairs: list[Any], path: Path) -> list[Any]:
    """Return the pairs of a list; raise InputError if there are none."""
    if not pairs:
        raise InputError(f"{path}: no pairs in it, expected one per line")
    return pairs
