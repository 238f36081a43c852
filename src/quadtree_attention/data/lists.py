"""Lists as text files: names of images, scenes or classes, one or more a line."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import InputError

_LARGEST = 2**30  # bytes: tens of millions of lines


def lines_in(path: Path) -> list[str]:
    """The lines of a text file in UTF-8, with a byte order mark or without, without spaces at their ends.

    Raises:
        InputError: not such a text.
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
