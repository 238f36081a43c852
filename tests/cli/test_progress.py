import pytest

from quadtree_attention.cli.progress import PairProgress


def test_how_far_and_how_long(capsys, monkeypatch):
    clock = iter([0.0, 1.0, 5.0, 9.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    with PairProgress() as progress:
        progress(1, 100, False)  # known from a run before
        progress(2, 100)
        progress(100, 100)
    assert [line.rstrip() for line in capsys.readouterr().err.split("\r")] == [
        "",
        "1/100 pairs",
        "2/100 pairs, 4.0 s each, 7 min left",
        "100/100 pairs, 4.0 s each",
    ]


def test_an_error_starts_on_a_line_of_its_own(capsys):
    def work():
        with PairProgress() as progress:
            progress(1, 2, False)
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        work()
    assert capsys.readouterr().err.endswith("\n")
    with PairProgress():
        pass
    assert capsys.readouterr().err == ""
