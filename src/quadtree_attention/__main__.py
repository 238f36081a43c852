"""Entry point of the command `quadtree`, and of ``python -m quadtree_attention``."""

from __future__ import annotations

import os
import sys

from .errors import InputError, MissingPackageError


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status.

    A user's mistake ends in one line on stderr and status 2, images that were left out in status 1, an interrupt in status 130; a traceback
    means a bug. The option --debug, anywhere on the command line, shows a traceback always.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    try:
        from .cli import run  # needs typer, which is optional

        status = run([argument for argument in arguments if argument != "--debug"])
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:  # whoever read our output has gone, as in `quadtree models | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        problem = _mistake(error)
        if problem is None or debug:
            raise
        return _fail(problem)
    return status


def command() -> None:
    """What the script `quadtree` calls: `main`, and the end of the process."""
    status = main()
    if sys.argv[1:2] in (["match"], ["stereo"]):
        # Nothing of a match outlives it, and taking torch down in order costs 0.8 s.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _mistake(error: Exception) -> str | None:
    """What went wrong, in a line for the user; None if it is a bug."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, (InputError, MissingPackageError, OSError)):
        return str(error)
    if type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
        return "out of GPU memory; choose a smaller --max-size or batch, or --device cpu"
    # torch's allocator for the CPU raises a bare RuntimeError, numpy's and Python's a MemoryError.
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return "out of memory; choose a smaller --max-size or batch"
    return None


def _fail(problem: str, status: int = 2) -> int:
    print(f"quadtree: {' '.join(str(problem).split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    command()
