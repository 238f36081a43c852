"""A small thread pool for nogil kernels: as many threads as torch uses, made anew after a fork."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

_pool: tuple[int, int, ThreadPoolExecutor] | None = None  # process, threads, executor


def run(task: Callable[[int, int], None], rows: int, *, chunks_per_thread: int = 4) -> None:
    """Call ``task(start, stop)`` on ranges that together cover ``range(rows)``, on ``torch.get_num_threads()`` threads.

    Which range runs where must not matter to the result: rows must not share what they write. Exceptions are raised here.
    """
    threads = torch.get_num_threads()
    chunks = min(rows, threads * chunks_per_thread)
    if threads == 1 or chunks < 2:
        task(0, rows)
        return
    edges = [rows * i // chunks for i in range(chunks + 1)]
    for _ in _executor(threads).map(task, edges[:-1], edges[1:]):
        pass


def _executor(threads: int) -> ThreadPoolExecutor:
    global _pool
    if _pool is None or _pool[:2] != (os.getpid(), threads):
        _pool = (os.getpid(), threads, ThreadPoolExecutor(threads, thread_name_prefix="quadtree"))
    return _pool[2]
