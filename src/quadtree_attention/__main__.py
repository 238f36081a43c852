"""Entry point of the command `quadtree`, and of ``python -m quadtree_attention``."""

from __future__ import annotations

import os
import sys


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit status.

    A user's mistake ends in one line on stderr and status 2, images that were left out in status 1, an interrupt in status 130; a traceback
    means a bug.
    """
    try:
        from .cli import run  # needs typer, which is optional

        status = run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:  # whoever read our output has gone, as in `quadtree models | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, ImportError) as error:
        return _fail(error)
    except MemoryError:
        return _fail("out of memory; choose a smaller --max-size")
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's
            return _fail("out of GPU memory; choose a smaller --max-size, or --device cpu")
        raise
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


def _fail(problem: object, status: int = 2) -> int:
    if isinstance(problem, OSError) and problem.strerror and problem.filename is not None:
        problem = f"{problem.filename}: {problem.strerror}"
    print(f"quadtree: {' '.join(str(problem).split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    command()
