"""quadtree rectify as a user calls it."""

import numpy as np
from PIL import Image

from quadtree_attention.__main__ import main


def test_rectified_pair(photo, tmp_path, capsys):
    """The middle of the scene is nearer than the rest; B was taken to the right of A and is rotated by a quarter of a degree a time."""
    wide = np.pad(photo, ((0, 0), (0, 64), (0, 0)), mode="reflect")
    height, width = photo.shape[:2]
    near = np.s_[height // 4 : -height // 4, width // 4 : -width // 4]
    other = wide[:, 4 : 4 + width].copy()
    other[near] = wide[:, 24 : 24 + width][near]
    other = np.asarray(Image.fromarray(other).rotate(3, resample=Image.Resampling.BICUBIC))
    Image.fromarray(photo).save(tmp_path / "a.png")
    Image.fromarray(other).save(tmp_path / "b.png")
    files = [str(tmp_path / name) for name in ("b.png", "a.png")]
    assert main(["rectify", *files, "--out", str(tmp_path / "pair")]) == 0
    said = capsys.readouterr().out
    assert f"{files[1]} is the left one" in said
    assert float(said.split("rows ")[1].split()[0]) < 0.5
    pair = [str(tmp_path / "pair" / name) for name in ("left.png", "right.png")]
    calib, depth = tmp_path / "pair" / "calib.yml", tmp_path / "depth.npy"
    assert main(["stereo", *pair, "--calib", str(calib), "--depth", str(depth)]) == 0
    z = np.load(depth)
    middle = z[near]
    edge = np.concatenate([z[16 : height // 6].ravel(), z[-height // 6 : -16].ravel()])
    assert np.median(middle[np.isfinite(middle)]) < 0.7 * np.median(edge[np.isfinite(edge)])


def test_mistakes(photos, tmp_path, capsys):
    assert main(["rectify", *photos, "--out", str(tmp_path / "pair")]) == 2
    assert "one homography explains the matches" in capsys.readouterr().err
    assert not (tmp_path / "pair").exists()
    assert main(["rectify", *photos, "--out", str(tmp_path / "pair"), "--focal", "-1"]) == 2
    assert capsys.readouterr().err == "quadtree: --focal is -1.0, expected a number of pixels above 0\n"
    assert main(["rectify", photos[0], "missing.png", "--out", str(tmp_path / "pair")]) == 2
    assert "missing.png" in capsys.readouterr().err
