"""Compiles kernels and keeps them on disk, in Numba's own cache, which here notices changed and damaged files."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core import event

from ..compat import CompileResultCacheImpl, FunctionCache, numba_dumps

# Files that kernels depend on, besides the one that defines them.
SOURCES = ("cpu_kernels.py", "cpu_blocks.py", "cpu_cache.py")


def compiled(function: Callable, *, fastmath: bool | set[str] = False) -> Callable:
    """Compile a function when it is first called, and keep the result beside its file, or else in the user's cache folder (or in NUMBA_CACHE_DIR).

    The compiled function releases the GIL and checks no bounds.
    """
    kernel: Any = numba.njit(nogil=True, fastmath=fastmath, error_model="numpy", boundscheck=False)(function)
    with contextlib.suppress(RuntimeError, OSError):  # no folder to write to: every process then compiles for itself
        kernel._cache = KernelCache(function)
    return kernel


class _Notice(event.Listener):
    """Log once that kernels are being compiled; kernels found in the cache say nothing."""

    def on_start(self, started: event.Event) -> None:
        if started.data["dispatcher"].py_func.__module__.partition(".")[0] == __name__.partition(".")[0]:
            _log("compiling the CPU kernels; they are kept for the next time")

    def on_end(self, ended: event.Event) -> None:
        pass


event.register("numba:compile", _Notice())


@cache
def _sources() -> bytes:
    """A digest of the files in `SOURCES`. Numba itself looks only at the file that defines a function."""
    digests = (hashlib.sha256((Path(__file__).parent / name).read_bytes()).digest() for name in SOURCES)
    return b"".join(digests)


class _Checked(CompileResultCacheImpl):
    """Machine code with a digest: a few wrong bits would crash the process or give wrong numbers."""

    def reduce(self, compiled: Any) -> tuple[bytes, bytes]:
        code = numba_dumps(super().reduce(compiled))
        return hashlib.sha256(_sources() + code).digest(), code

    def rebuild(self, target_context: Any, reduced: tuple[bytes, bytes]) -> Any:
        digest, code = reduced
        if hashlib.sha256(_sources() + code).digest() != digest:
            raise ValueError("the digest is another")
        return super().rebuild(target_context, pickle.loads(code))


class KernelCache(FunctionCache):
    """The compiled versions of a kernel. One that cannot be read is compiled again; one that cannot be written stays in memory only."""

    _impl_class = _Checked

    def __init__(self, function: Callable) -> None:
        _sources()  # where they cannot be read, nothing is kept
        super().__init__(function)

    def _index_key(self, sig: Any, codegen: Any) -> tuple:
        return (*super()._index_key(sig, codegen), _sources())

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            compiled = super().load_overload(sig, target_context)
            if compiled is not None and tuple(compiled.signature.args) != tuple(sig):
                raise ValueError("it is of other types")
            return compiled
        except Exception as problem:  # reading damaged pickles can raise anything
            _log(f"the compiled CPU kernels on disk cannot be read and are made anew ({_line(problem)})")
            self._written(self.flush)
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        self._written(lambda: super(KernelCache, self).save_overload(sig, data))

    def _written(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as problem:
            _log(f"the compiled CPU kernels cannot be kept for the next time ({_line(problem)})")


def _line(problem: Exception) -> str:
    return " ".join(f"{type(problem).__name__}: {problem}".split())


@cache
def _log(text: str) -> None:
    """Log a line; each line only once."""
    logging.getLogger("quadtree_attention").warning(text)
