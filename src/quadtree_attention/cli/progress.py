"""How far a command has come, on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType


class PairProgress:
    """A line on stderr: pairs done, what one takes, and the time left; pairs that an earlier run did do not count in these.

    Use it as a context around the work: what is printed after it, an error too, stands on a line of its own.
    """

    def __init__(self) -> None:
        self._start, self._width = 0.0, 0

    def __enter__(self) -> PairProgress:
        return self

    def __call__(self, done: int, total: int, fresh: int) -> None:
        """done: pairs of ``total``, ``fresh`` of them by this run. To be called before the first one, too, when all that comes before it is ready."""
        now = time.perf_counter()
        line = f"{done}/{total} pair{'s' * (total != 1)}"
        if not fresh:
            self._start = now
        else:
            each = (now - self._start) / fresh
            line += f", {each:.1f} s each" + (f", {_duration(each * (total - done))} left" if done < total else "")
        print(f"\r{line:<{self._width}}", end="", file=sys.stderr, flush=True)
        self._width = len(line)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._width:
            print(file=sys.stderr)
        self._width = 0


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
