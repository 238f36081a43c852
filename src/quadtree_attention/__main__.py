"""Entry point of the command `quadtree`, and of ``python -m quadtree_attention``."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from .errors import InputError, MissingPackageError, out_of_memory

# How to use less memory, by command.
_LESS_MEMORY = {
    "match": "choose a smaller --max-size",
    "match-folder": "choose a smaller --max-size",
    "attention": "choose a smaller --max-size",
    "stereo": "choose a smaller --max-size",
    "rectify": "choose a smaller --max-size",
    "evaluate": "choose a smaller --max-size",
    "classify": "choose a smaller --model, or shrink the image",
    "detect": "choose a smaller --model, or shrink the image",
    "segment": "choose a smaller --model, or shrink the image",
    "bench": "choose smaller --sizes",
    "fit": "choose a smaller --data.batch_size",
    "validate": "choose a smaller --data.batch_size",
    "test": "choose a smaller --data.batch_size",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status.

    A user's mistake ends in one line on stderr and status 2; skipped images give status 1, an interrupt 130, SIGTERM 143. A traceback means a bug.
    The option --debug, anywhere on the command line, shows the traceback of any error.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    _prepare_streams()
    signals: list[int] = []
    try:
        with _terminated(signals):
            from .cli import run  # needs typer, which is optional

            status = run(arguments)
            sys.stdout.flush()
    except KeyboardInterrupt:
        return _fail("terminated", 143) if signals else _fail("interrupted", 130)
    except BrokenPipeError:  # the reader of our output has gone, as in `quadtree models | head -1`
        _forget_stdout()
        return 1
    except Exception as error:
        problem = _mistake(error, arguments[0] if arguments else "")
        if problem is None or debug:
            raise
        try:
            sys.stdout.flush()
        except OSError:  # flushing may be what failed, on a full disk; Python would try again at exit, and complain
            _forget_stdout()
        return _fail(problem)
    return status


def command() -> None:
    """Entry point of the script `quadtree`: runs `main` and ends the process."""
    _share_cores()
    status = main()
    if sys.argv[1:2] in (["match"], ["stereo"]):
        # A command leaves nothing to clean up, and unloading torch in order takes 0.8 s.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _share_cores() -> None:
    """Have torch's threads sleep while they wait for their next work.

    By default they spin for milliseconds, on cores that other processes may need, and so may the thread that they wait for. OpenMP reads this when
    torch is loaded; whoever has set either variable has said what to do.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["OMP_WAIT_POLICY"] = "passive"


def _prepare_streams() -> None:
    """Make sure that stdout and stderr exist, and can print every file name."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 (for as long as we run)
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _forget_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _terminated(signals: list[int]) -> Iterator[None]:
    """Context in which SIGTERM raises KeyboardInterrupt, like Ctrl-C, so that finished work is kept; the signal is added to ``signals``."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only there may handlers be set
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _mistake(error: Exception, name: str) -> str | None:
    """Describe in one line for the user what went wrong in the command of that name; None if it is a bug."""
    if out_of_memory(error):
        return f"out of memory; {_LESS_MEMORY.get(name, 'close other programs')}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    if isinstance(error, (InputError, MissingPackageError, OSError)):
        return str(error)
    return None


def _fail(problem: str, status: int = 2) -> int:
    print(f"quadtree: {' '.join(str(problem).split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    command()
