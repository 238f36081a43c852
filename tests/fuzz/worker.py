"""The process that reads damaged files.

It takes cases from stdin, one in a line of JSON, and reports what happened on the descriptor that its first argument names.

Descriptors 1 and 2 are files that the parent reads, so that it sees what libraries in C write too.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import traceback
import warnings
from pathlib import Path

from .kinds import all_kinds
from .misbehaving import MISBEHAVING


def main() -> None:
    report = os.fdopen(int(sys.argv[1]), "w")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    kinds = {**all_kinds(), MISBEHAVING.name: MISBEHAVING}
    home = Path.cwd()
    # What a first use loads is not the case's.
    import torch  # noqa: F401

    for line in sys.stdin:
        case = json.loads(line)
        kind = kinds[case["kind"]]
        if case["warm"]:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        else:
            limit = _address_space() + kind.memory
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        os.chdir(case["folder"])
        print(json.dumps(_outcome(kind, Path(case["folder"]), Path(case["path"]))), file=report, flush=True)
        os.chdir(home)


def _outcome(kind, folder: Path, path: Path) -> dict:
    from quadtree_attention.errors import InputError, MissingPackageError

    outcome: dict = {"status": 0, "message": "", "trace": "", "warnings": []}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            status = kind.use(folder, path)
            outcome["command"], outcome["status"] = status is not None, status or 0
        except (InputError, MissingPackageError, OSError) as error:
            message = (
                f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.strerror else str(error)
            )
            outcome.update(status=2, command=False, message=message)
        except BaseException:
            outcome.update(status=-1, command=False, trace=traceback.format_exc()[-3000:])
    # Ours, or of another library, which a user would see as a strange line.
    outcome["warnings"] = [
        f"{one.category.__name__} at {one.filename}: {one.message}" for one in caught if not _ours(one)
    ]
    sys.stdout.flush()
    sys.stderr.flush()
    return outcome


def _ours(warning: warnings.WarningMessage) -> bool:
    """What the package says itself: plain warnings, by whoever called it."""
    return warning.category is UserWarning or warning.category.__module__.startswith("quadtree_attention")


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


if __name__ == "__main__":
    main()
