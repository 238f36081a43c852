"""Runs nogil kernels on as many threads as torch uses: on torch's own threads where they are available, else on a small pool.

torch's OpenMP threads keep a core busy for milliseconds after each parallel operation, waiting for the next one. A second pool has to share the
cores with them and loses a third of its speed; torch's own threads start at once. A forked process has lost them, so it gets a pool.
"""

from __future__ import annotations

import ctypes
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import torch

from ..compat import gomp_parallel

_WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_process = os.getpid()
_pool: tuple[int, int, ThreadPoolExecutor] | None = None  # process, threads, executor


def run(task: Callable[[int, int], None], rows: int, *, chunks_per_thread: int = 4) -> None:
    """Call ``task(start, stop)`` on ranges that together cover ``range(rows)``, on ``torch.get_num_threads()`` threads.

    Which range runs where must not matter to the result: rows must not share what they write. Exceptions are raised in the caller.
    """
    threads = torch.get_num_threads()
    chunks = min(rows, threads * chunks_per_thread)
    if threads == 1 or chunks < 2:
        task(0, rows)
        return
    edges = [rows * i // chunks for i in range(chunks + 1)]
    ranges = deque(pairwise(edges))
    team = gomp_parallel(_WORK) if os.getpid() == _process else None
    if team is None:
        for _ in _executor(threads).map(lambda both: task(*both), ranges):
            pass
        return
    failures: list[BaseException] = []

    @_WORK
    def work(_: int | None) -> None:
        try:
            while ranges:  # each thread takes the next range
                try:
                    start, stop = ranges.popleft()
                except IndexError:  # another thread took the last one
                    return
                task(start, stop)
        except BaseException as failure:
            failures.append(failure)

    team(work, None, threads, 0)
    if failures:
        raise failures[0]


def _executor(threads: int) -> ThreadPoolExecutor:
    global _pool
    if _pool is None or _pool[:2] != (os.getpid(), threads):
        _pool = (os.getpid(), threads, ThreadPoolExecutor(threads, thread_name_prefix="quadtree"))
    return _pool[2]
