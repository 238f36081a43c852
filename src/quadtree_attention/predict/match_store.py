"""Stores the matches of pairs in one file, from which an interrupted run can continue."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError

_TABLES = (
    "CREATE TABLE IF NOT EXISTS settings (content TEXT)",
    "CREATE TABLE IF NOT EXISTS matches (name0 TEXT, name1 TEXT, stamp TEXT, points0 BLOB, points1 BLOB, confidence BLOB, "
    "PRIMARY KEY (name0, name1))",
)


class PairMatches(NamedTuple):
    """points0, points1 float32 ``[M, 2]``, confidence float32 ``[M]``."""

    points0: np.ndarray
    points1: np.ndarray
    confidence: np.ndarray


class MatchStore:
    """A file of matches (SQLite). Each pair is stored whole or not at all, and only one process at a time can open the file.

    Args:
        path: the file; created if it is missing.
        settings: its matches can be used only with equal settings.

    Raises:
        ValueError: the file is of another kind, or holds matches of other settings; it is not changed.
        OSError: it cannot be written, or another process has opened it.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        with self._plain_errors():
            self._base = sqlite3.connect(path, isolation_level=None, timeout=0)
        try:
            with self._plain_errors():
                self._base.execute("PRAGMA locking_mode = EXCLUSIVE")  # until it is closed
                self._base.execute("BEGIN EXCLUSIVE")
                self._check_tables()
                for table in _TABLES:
                    self._base.execute(table)
                self._check_settings(settings)
                self._base.execute("COMMIT")
        except BaseException:
            self._base.close()
            raise

    def _check_tables(self) -> None:
        """Check that this is not a database of another kind, which would be deleted at the end."""
        found = self._base.execute(
            "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"
        ).fetchall()
        ours = [("table", sql.split()[5], sql.replace("IF NOT EXISTS ", "")) for sql in _TABLES]
        if found and sorted(found) != sorted(ours):
            raise self._damaged("other tables")

    def _damaged(self, why: object) -> InputError:
        return InputError(f"{self.path} is not a file of matches, or is damaged ({why}); remove it")

    def _check_settings(self, settings: dict[str, Any]) -> None:
        """Check that all matches have these settings."""
        content = json.dumps(settings, sort_keys=True)
        found = self._base.execute("SELECT content FROM settings").fetchone()
        if found == (content,):
            return
        if count := self.count():
            try:
                settings, before = json.loads(content), json.loads(found[0]) if found else {}
            except (TypeError, ValueError, RecursionError):
                before = None
            if not isinstance(before, dict):
                raise self._damaged("unknown settings")
            names = sorted(key for key in {**settings, **before} if settings.get(key) != before.get(key))
            raise InputError(
                f"{self.path} holds {count} pair{'s' * (count != 1)} matched with other settings ({', '.join(names)}); "
                "remove it, or choose another --out"
            )
        self._base.execute("DELETE FROM settings")
        self._base.execute("INSERT INTO settings VALUES (?)", (content,))

    def count(self) -> int:
        """The number of pairs stored."""
        with self._plain_errors():
            return self._base.execute("SELECT COUNT(*) FROM matches").fetchone()[0]

    def has(self, pair: tuple[str, str], stamp: str) -> bool:
        """Whether the pair's matches are stored, for images with this stamp."""
        with self._plain_errors():
            query = "SELECT 1 FROM matches WHERE name0 = ? AND name1 = ? AND stamp = ?"
            return self._base.execute(query, (*pair, stamp)).fetchone() is not None

    def add(self, pair: tuple[str, str], stamp: str, matches: PairMatches) -> None:
        """Store a pair's matches, and replace older ones."""
        blobs = [np.ascontiguousarray(array, np.float32).tobytes() for array in matches]
        with self._plain_errors():
            self._base.execute("INSERT OR REPLACE INTO matches VALUES (?, ?, ?, ?, ?, ?)", (*pair, stamp, *blobs))

    def get(self, pair: tuple[str, str]) -> PairMatches:
        """Read a pair's matches."""
        with self._plain_errors():
            query = "SELECT points0, points1, confidence FROM matches WHERE name0 = ? AND name1 = ?"
            row = self._base.execute(query, pair).fetchone()
        if row is None or not all(isinstance(blob, bytes) and len(blob) % 4 == 0 for blob in row):
            raise self._damaged(f"no matches of {' and '.join(pair)}")
        points0, points1, confidence = (np.frombuffer(blob, np.float32) for blob in row)
        if not len(points0) == len(points1) == 2 * len(confidence) or not all(
            np.isfinite(values).all() for values in (points0, points1, confidence)
        ):
            raise self._damaged(f"odd matches of {' and '.join(pair)}")
        return PairMatches(points0.reshape(-1, 2), points1.reshape(-1, 2), confidence)

    def close(self) -> None:
        """Close the file; delete it if it has no matches."""
        try:
            count = self.count()
        except (InputError, OSError):  # the error that led here says more
            count = -1
        if count:
            self._base.close()
        else:
            self.remove()

    def remove(self) -> None:
        """Close and delete the file, and the journal that SQLite leaves if an earlier run was killed and this one only read."""
        self._base.close()
        self.path.unlink(missing_ok=True)
        self.path.with_name(f"{self.path.name}-journal").unlink(missing_ok=True)

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if "full" in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path)) from None
            if "locked" in str(error):
                raise OSError(
                    f"{self.path} is in use by another run; wait until it ends, or choose another --out"
                ) from None
            raise OSError(f"{self.path} cannot be used: {error}") from None
        except (
            sqlite3.DatabaseError,
            UnicodeDecodeError,
        ) as error:  # the latter: from SQLite's message on a damaged name
            raise self._damaged(error) from None
