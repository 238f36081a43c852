"""Figures of single pairs, written as they come, from which a run that was cut off goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ...files import atomic_write, check_output
from ...table import TABLE_SUFFIXES, Table

Row = dict[str, Any]


class PairLog:
    """Rows of single pairs in a file beside out, from which a run that was cut off goes on.

    While a run lasts the file is NAME.partial.jsonl, with the settings in its first line; other settings start it anew.
    A finished run leaves NAME.jsonl. Without out nothing is written.
    """

    def __init__(self, out: str | Path | None, settings: Row) -> None:
        self.out = None if out is None else check_output(out, TABLE_SUFFIXES)
        self.done: dict[tuple[str, int], Row] = {}
        if self.out is None:
            return
        self.partial = self.out.with_suffix(".partial.jsonl")
        whole = self._read()
        if not whole or whole[0] != settings:
            whole = [settings]
        self.done = {(row["model"], row["index"]): row for row in whole[1:]}
        with atomic_write(self.partial) as temporary:
            temporary.write_text("".join(_line(row) for row in whole), encoding="utf-8")

    def _read(self) -> list[Row]:
        """The file's whole lines; one that was cut off in writing, and any after it, are left out."""
        rows: list[Row] = []
        lines = self.partial.read_text(encoding="utf-8").splitlines() if self.partial.is_file() else []
        for line in lines:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                break
            # In figures, null stands for infinity; the settings, in the first line, are as they are.
            rows.append({key: np.inf if value is None and rows else value for key, value in row.items()})
        return rows

    def add(self, row: Row) -> None:
        """Append one pair's row."""
        if self.out is not None:
            with self.partial.open("a", encoding="utf-8") as file:
                file.write(_line(row))

    def finish(self, table: Table) -> None:
        """Write the table and give the file of pairs its final name."""
        if self.out is not None:
            table.save(self.out)
            self.partial.replace(self.out.with_suffix(".jsonl"))


def _line(row: Row) -> str:
    """A line of JSON, which knows no infinity: failures are null."""
    return json.dumps({key: None if value == np.inf else value for key, value in row.items()}) + "\n"
