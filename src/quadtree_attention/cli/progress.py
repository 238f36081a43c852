"""Shows the progress of a command on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType

_EACH = 60  # seconds between two lines in a log file


class PairProgress:
    """Shows on stderr the number of pairs done, the time per pair, and the time left. Times do not count pairs of an earlier run.

    On a terminal this is one line that changes; elsewhere, as in a log file, it is a line per minute, and one at the end.

    Use it as a context around the work, so that whatever is printed afterwards, such as an error, starts on a new line.

    Args:
        quiet: show nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._start, self._width, self._shown = 0.0, 0, float("-inf")

    def __enter__(self) -> PairProgress:
        return self

    def __call__(self, done: int, total: int, fresh: int) -> None:
        """Show that ``done`` of ``total`` pairs are done, ``fresh`` of them by this run. Call it once before the first pair, when all is ready."""
        if self._quiet:
            return
        now = time.perf_counter()
        line = f"{done}/{total} pair{'s' * (total != 1)}"
        if not fresh:
            self._start = now
        else:
            each = (now - self._start) / fresh
            line += f", {each:.1f} s each" + (f", {duration(each * (total - done))} left" if done < total else "")
        if not sys.stderr.isatty():
            if now - self._shown >= _EACH or done == total:
                print(line, file=sys.stderr, flush=True)
                self._shown = now
            return
        print(f"\r{line:<{self._width}}", end="", file=sys.stderr, flush=True)
        self._width = len(line)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._width:
            print(file=sys.stderr)
        self._width = 0


def duration(seconds: float) -> str:
    """A time in words: seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
