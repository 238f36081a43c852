"""Result tables: as text, markdown, JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .files import checked_suffix, write_text

TABLE_SUFFIXES = (".json", ".csv", ".md")


@dataclass(frozen=True)
class Table:
    """Rows of names and figures with the same keys, and the settings of the run that produced them."""

    rows: list[dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """Aligned columns: names to the left, figures to the right."""
        cells = self._cells()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        named = [isinstance(value, str) for value in self.rows[0].values()] if self.rows else []
        lines = (
            "  ".join(c.ljust(w) if left else c.rjust(w) for c, w, left in zip(row, widths, named, strict=True))
            for row in cells
        )
        return "\n".join(line.rstrip() for line in lines)

    def markdown(self) -> str:
        """A markdown table."""
        head, *body = self._cells()
        marks = ["---" if isinstance(value, str) else "---:" for value in self.rows[0].values()] if self.rows else []
        return "\n".join("| " + " | ".join(row) + " |" for row in [head, marks, *body])

    def save(self, path: str | Path) -> None:
        """Write to .json (with the settings), .csv or .md, whole or not at all."""
        write_text(path, self._encoded(checked_suffix(path, TABLE_SUFFIXES)))

    def _encoded(self, suffix: str) -> str:
        if suffix == ".json":
            return json.dumps({"settings": self.settings, "results": self.rows}, indent=2) + "\n"
        if suffix == ".md":
            return self.markdown() + "\n"
        file = io.StringIO()
        writer = csv.DictWriter(file, list(self.rows[0]) if self.rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return file.getvalue()

    def _cells(self) -> list[Sequence[str]]:
        columns = list(self.rows[0]) if self.rows else []
        heads = [f"{name} %" if "@" in name else name for name in columns]  # as _cell has them; files have shares of 1
        return [heads, *([_cell(name, row[name]) for name in columns] for row in self.rows)]


def _cell(name: str, value: Any) -> str:
    """Shares (auc@, right@, prec@) in percent with one decimal, other figures with as many as they need."""
    if isinstance(value, str):
        return value
    if value is None:
        return "-"
    if "@" in name:
        return f"{100 * value:.1f}"
    return f"{value:d}" if isinstance(value, int) else f"{value:.0f}" if value >= 10 else f"{value:.1f}"
