import pytest

from quadtree_attention import __version__
from quadtree_attention.__main__ import main


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"quadtree-attention {__version__}\n"


def test_models_are_listed_with_their_licences(capsys):
    assert main(["models"]) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert "MIT" in rows["tiny"]
    for published in ("indoor", "outdoor"):
        assert "Apache-2.0" in rows[published]


def test_homographies_of_photographs_are_evaluated(tmp_path, photos, capsys):
    assert main(["evaluate", "homography", str(tmp_path), "--models", "sift", "--limit", "1", "--max-size", "128"]) == 0
    (row,) = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("sift")]
    shares, pairs = [float(value) for value in row[1:5]], int(row[-1])  # AUC at 1, 3, 5 and 10 pixels, in percent
    assert pairs == 1
    assert shares == sorted(shares)
    assert shares[-1] > 50  # of noise that overlaps with itself
    assert max(shares) <= 100


@pytest.mark.parametrize("arguments", [["guess"], ["match", "--guess", "a.png", "b.png"], ["match", "a.png"]])
def test_what_does_not_exist_is_named_in_one_line(arguments, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("quadtree: ")
    assert err.count("\n") == 1
