from quadtree_attention.__main__ import main


def test_other_commands(tmp_path, photos, random_weights, capsys):
    assert main(["--version"]) == 0
    assert main(["models"]) == 0
    listing = capsys.readouterr().out
    assert all(name in listing for name in ("tiny", "indoor", "outdoor", "MIT", "Apache-2.0"))
    assert main(["evaluate", "homography", str(tmp_path), "--limit", "1", "--max-size", "128"]) == 0
    assert "sift" in capsys.readouterr().out
    assert main(["guess"]) == 2
    assert "guess" in capsys.readouterr().err
