"""quadtree models."""

from __future__ import annotations

from .app import app


@app.command()
def models() -> None:
    """List the models that --model accepts: name, task, description, size, licence, whether it is downloaded, and source."""
    from ..weights.registry import PRETRAINED

    rows = [("name", "for", "what", "size", "licence", "here", "from")]
    for row in PRETRAINED.values():
        here = row.path.is_file()
        size = f"{row.path.stat().st_size / 1e6:.1f} MB" if here else f"about {row.megabytes:.0f} MB"
        rows.append((row.name, row.task, row.what, size, row.licence, "yes" if here else "no", row.source))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
