import re
import sys

import pytest

from quadtree_attention.cli.progress import PairProgress, duration


def test_how_far_and_how_long(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    clock = iter(range(0, 100, 2))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    with PairProgress() as progress:
        for numbers in ((0, 103, 0), (100, 103, 0), (101, 103, 1), (102, 103, 2), (103, 103, 3)):
            progress(*numbers)
    lines = [line.rstrip() for line in re.split(r"[\r\n]", capsys.readouterr().err)]
    assert lines == [
        "",
        "0/103 pairs",
        "100/103 pairs",
        "101/103 pairs, 2.0 s each, 4 s left",
        "102/103 pairs, 2.0 s each, 2 s left",
        "103/103 pairs, 2.0 s each",
        "",
    ]
    assert [duration(seconds) for seconds in (119, 600, 9000)] == ["119 s", "10 min", "2.5 h"]


def test_a_log_file_gets_a_line_a_minute(capsys, monkeypatch):
    clock = iter(range(0, 1000, 10))  # seconds, of each call
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    with PairProgress() as progress:
        for done in range(10):
            progress(done, 9, done)
    assert capsys.readouterr().err.splitlines() == [
        "0/9 pairs",
        "6/9 pairs, 10.0 s each, 30 s left",
        "9/9 pairs, 10.0 s each",
    ]
    with PairProgress(quiet=True) as progress:
        progress(0, 1, 0)
        progress(1, 1, 1)
    assert capsys.readouterr().err == ""


def test_an_error_starts_on_a_line_of_its_own(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    def work():
        with PairProgress() as progress:
            progress(0, 1, 0)
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        work()
    assert capsys.readouterr().err == "\r0/1 pair\n"
    with PairProgress():
        pass
    assert capsys.readouterr().err == ""
