"""How far a command has come, on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType


class PairProgress:
    """A line that says how many pairs are done, how long one takes and how long the rest will; it is ended before anything else is printed.

    Use it as a context around the work, and call it after each pair.
    """

    def __init__(self) -> None:
        self._last, self._spent, self._fresh, self._open = time.perf_counter(), 0.0, 0, False

    def __enter__(self) -> PairProgress:
        return self

    def __call__(self, done: int, total: int, fresh: bool = True) -> None:
        """done: pairs of ``total``; fresh: whether the last one took any work, and was not known from a run before."""
        now = time.perf_counter()
        if fresh:
            self._fresh, self._spent = self._fresh + 1, self._spent + now - self._last
        self._last = now
        line = f"{done}/{total} pair{'s' if total != 1 else ''}"
        if self._fresh:
            each = self._spent / self._fresh
            line += f", {each:.1f} s each" + (f", {_duration(each * (total - done))} left" if done < total else "")
        print(f"\r{line:<60}", end="", file=sys.stderr, flush=True)
        self._open = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open:
            print(file=sys.stderr)
        self._open = False


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{minutes / 60:.1f} h"
