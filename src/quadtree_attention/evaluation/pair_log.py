"""Figures of single pairs, written as they come, from which a run that was cut off goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..files import check_output, printable, write_text
from ..table import TABLE_SUFFIXES, Table

Row = dict[str, Any]


class PairLog:
    """Rows of single pairs in a file beside out, from which a run that was cut off goes on.

    While a run lasts the file is NAME.partial.jsonl, with the settings in its first line. A row has the ``model`` and the ``weights`` it was measured
    with, so that a run with other models keeps those of the first. A finished run leaves NAME.jsonl. Without out nothing is written.
    It is text to be read, a line a pair; `predict.match_store` keeps gigabytes of matches, which are looked up by name, in SQLite.

    Args:
        out: file of the table.
        settings: what must be the same for rows to go together.
        weights: model -> what tells its weights from others.

    Raises:
        ValueError: the file has rows of other settings.
    """

    def __init__(self, out: str | Path | None, settings: Row, weights: Mapping[str, str]) -> None:
        self.out = None if out is None else check_output(out, TABLE_SUFFIXES)
        self.settings, self.weights = settings, weights
        self.done: dict[tuple[str, int], Row] = {}
        if self.out is None:
            return
        self.partial = self.out.with_suffix(".partial.jsonl")
        old, rows = self._read()
        if rows and old != settings:
            changed = ", ".join(
                f"{key} {old.get(key)}, now {settings.get(key)}"
                for key in sorted({*old, *settings})
                if old.get(key) != settings.get(key)
            )
            raise InputError(
                f"{self.partial} holds {len(rows)} results of other settings ({changed}); remove it, or choose another --out"
            )
        self.done = {(row["model"], row["index"]): row for row in rows if weights.get(row["model"]) == row["weights"]}
        if rows:  # without what was cut off
            write_text(self.partial, "".join(map(_line, [settings, *rows])))
        else:
            self.partial.unlink(missing_ok=True)

    def _read(self) -> tuple[Row, list[Row]]:
        """Settings and rows of the file's whole lines; one that was cut off in writing, and any after it, are left out."""
        whole: list[Row] = []
        if not self.partial.is_file():
            return {}, []
        text = self.partial.read_bytes().decode("utf-8", "backslashreplace")
        head = _line(self.settings)[: len('{"version"')]  # as far as all versions begin alike
        if not text.startswith(head[: len(text)]):
            raise InputError(f"{self.partial} is not of this command; remove it, or choose another --out")
        lines = text.splitlines()
        for line in lines:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                break
            # In figures, null stands for infinity; the settings, in the first line, are as they are.
            whole.append({key: np.inf if value is None and whole else value for key, value in row.items()})
        return (whole[0], whole[1:]) if whole else ({}, [])

    def add(self, row: Row) -> Row:
        """Append one pair's row, and the weights of its model."""
        row = {"model": row["model"], "weights": self.weights[row["model"]], **row}
        self.done[row["model"], row["index"]] = row
        if self.out is not None:
            head = "" if self.partial.exists() else _line(self.settings)
            with self.partial.open("a", encoding="utf-8") as file:
                file.write(printable(head + _line(row)))
        return row

    def finish(self, table: Table) -> None:
        """Write the table, and beside it the rows of this run's models."""
        if self.out is None:
            return
        table.save(self.out)
        rows = [row for row in self.done.values() if row["model"] in self.weights]
        write_text(self.out.with_suffix(".jsonl"), "".join(map(_line, [self.settings, *rows])))
        self.partial.unlink(missing_ok=True)


def _line(row: Row) -> str:
    """A line of JSON, which knows no infinity: failures are null."""
    return json.dumps({key: None if value == np.inf else value for key, value in row.items()}) + "\n"
