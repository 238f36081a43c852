"""A kind of file whose reader breaks the rule, as the file says: what the judge is tested with."""

from __future__ import annotations

import os
from pathlib import Path

from quadtree_attention.errors import InputError

from .kinds import Kind


def _make(folder: Path) -> list[tuple[Path, str]]:
    (folder / "a.txt").write_text("sound")
    return [(folder / "a.txt", "text")]


def _use(folder: Path, path: Path) -> None:
    word = path.read_text()
    if word == "dies":
        os._exit(3)
    elif word == "hangs":
        while True:
            pass
    elif word == "grows":
        bytearray(1 << 40)
    elif word == "leaves":
        (folder / "left").touch()
    elif word == "writes":
        path.write_text("other")
    elif word == "noise":
        os.write(2, b"libpng error\n")
    elif word == "bug":
        raise KeyError("x")
    elif word == "lines":
        raise InputError(f"{path.name}:\nbad")
    elif word == "nameless":
        raise InputError("bad")
    elif word == "refused":
        raise InputError(f"{path.name}: bad")


WORDS = ("dies", "hangs", "grows", "leaves", "writes", "noise", "bug", "lines", "nameless", "refused", "sound")
MISBEHAVING = Kind("misbehaving", _make, _use, {word: word.encode() for word in WORDS}, seconds=2)
