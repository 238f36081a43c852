"""Damaged files: made by chance from sound ones, read in a process that may die, and judged.

The rule: a damaged file is read all the same, or ends in one line and exit status 2 (1 where a folder goes on without it). No traceback, no
crash, no hang, no memory without bound, no other lines on stderr, no files left behind.

    python -m tests.fuzz                           all kinds, a minute
    python -m tests.fuzz images coco --seconds 600 --seed 3
    python -m tests.fuzz coco --seed 3 --case 17 --keep DIR    one case again; its files go to DIR

`damage` makes damaged files, `judge` runs a case and judges it, `worker` is the process that it runs in, and `kinds` has the kinds of files: each
file there has a list KINDS. To add a kind, add a file, or an entry to its list.

`operator` is no kind of files: random calls of the operator's kernels, which must give what the reference gives.
"""
