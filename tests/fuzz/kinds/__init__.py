"""Kinds of files that are damaged; each module here has a list KINDS of what it adds."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Kind:
    """One kind of file, and what reads it.

    name: on the command line.
    make: writes sound files into a folder, which is called once, and gives those to damage, one a case, each with its form: a name of
        `damage.FORMS`.
    use: reads it: called with the folder and the path of the damaged file in it, from the folder as the current one. A reader returns nothing
        and raises what it raises; a command returns its exit status, as `quadtree_attention.__main__.main` does.
    hostile: contents made by hand, by name, tried before chance has its turn; each takes the place of the first file that ``make`` gives.
    results: patterns of files that a run that succeeds may leave in the folder.
    leaves: patterns of files that a run that fails may leave.
    warns: whether warnings of the package, or lines "quadtree: ..." of a command that succeeds, are right.
    names: whether the message must hold the name of the damaged file.
    seconds: how long a case may take; memory: bytes that it may take.
    cases: how many of chance `make test` tries, after those made by hand; 0: none at all.
    needs: module that must be there.
    """

    name: str
    make: Callable[[Path], Sequence[tuple[Path, str]]]
    use: Callable[[Path, Path], int | None]
    hostile: Mapping[str, bytes] = field(default_factory=dict)
    results: tuple[str, ...] = ()
    leaves: tuple[str, ...] = ()
    warns: bool = True
    names: bool = True
    seconds: float = 20.0
    memory: int = 2 << 30
    cases: int = 100
    needs: str = ""


def all_kinds() -> dict[str, Kind]:
    """All kinds by name, in order."""
    kinds: dict[str, Kind] = {}
    for module in sorted(one.name for one in pkgutil.iter_modules(__path__)):
        for kind in importlib.import_module(f"{__name__}.{module}").KINDS:
            assert kind.name not in kinds, f"two kinds {kind.name}"
            kinds[kind.name] = kind
    return kinds
