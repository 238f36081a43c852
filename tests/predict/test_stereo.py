"""From a pair of images of any kind to disparity, files, points and pictures; and the command that does it."""

import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from quadtree_attention import StereoMatcher
from quadtree_attention.__main__ import main
from quadtree_attention.data.maps import read_map
from quadtree_attention.data.stereo.calibration import StereoCamera
from quadtree_attention.predict.stereo import Stereo, resize_map
from quadtree_attention.viz.disparity import draw_disparity
from quadtree_attention.weights import load
from quadtree_attention.weights.registry import find

SHIFT = 12


@pytest.fixture(scope="module")
def matcher():
    return StereoMatcher.from_pretrained("tiny", device="cpu")


@pytest.fixture(scope="module")
def pair():
    """A textured wall, ``SHIFT`` pixels away from being far; [96, 160, 3] uint8 each."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (48, 86, 3), dtype=np.uint8)).resize(
        (172, 96), Image.Resampling.BICUBIC
    )
    wall = np.asarray(image)
    return np.ascontiguousarray(wall[:, :-SHIFT]), np.ascontiguousarray(wall[:, SHIFT:])


@pytest.fixture
def files(pair, tmp_path):
    paths = [tmp_path / "left.png", tmp_path / "right.png"]
    for path, image in zip(paths, pair, strict=True):
        Image.fromarray(image).save(path)
    return [str(path) for path in paths]


def inner(disparity):
    return disparity[8:-8, SHIFT + 8 : -SHIFT - 8]


def test_a_wall(matcher, pair):
    left, right = pair
    found = matcher.match(left, right)
    assert found.disparity.shape == found.occlusion.shape == found.confidence.shape == left.shape[:2]
    assert found.disparity.dtype == np.float32
    assert np.median(np.abs(inner(found.disparity) - SHIFT)) < 1
    assert inner(found.occlusion).mean() < 0.3 < found.occlusion[:, : SHIFT - 4].mean()
    assert found.range[0] <= SHIFT + 1
    mirrored = matcher.match(left, right, view="right")
    assert np.median(np.abs(inner(mirrored.disparity) - SHIFT)) < 1
    assert mirrored.occlusion[:, 4 - SHIFT :].mean() > 0.3


def test_kinds_of_images(matcher, pair):
    left, right = pair
    grey = [image.mean(2).astype(np.uint8) for image in pair]
    deep = [image.astype(np.uint16) * 257 for image in grey]
    floats = [torch.from_numpy(image.transpose(2, 0, 1) / 255.0) for image in pair]
    for images in (grey, deep, floats, [Image.fromarray(image) for image in pair]):
        assert np.median(np.abs(inner(matcher.match(*images).disparity) - SHIFT)) < 1
    dark = matcher.match(left, (right * 0.5 + 30).astype(np.uint8))
    assert np.median(np.abs(inner(dark.disparity) - SHIFT)) < 1


def test_disparity_is_in_pixels_of_the_images_as_given(matcher, pair):
    large = [np.asarray(Image.fromarray(image).resize((480, 288), Image.Resampling.BICUBIC)) for image in pair]
    found = matcher.match(*large, max_size=160)
    assert found.disparity.shape == (288, 480)
    assert np.median(np.abs(found.disparity[24:-24, 60:-60] - 3 * SHIFT)) < 3


def test_exchanged_views_are_told(matcher, pair):
    left, right = pair
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        matcher.match(left, right)
    with pytest.warns(UserWarning, match="are left and right exchanged"):
        matcher.match(right, left)


def test_bad_pairs(matcher, pair):
    left, right = pair
    with pytest.raises(
        ValueError, match="left has 160x96 pixels and right 159x96, expected a rectified pair of one size"
    ):
        matcher.match(left, right[:, 1:])
    with pytest.raises(ValueError, match="left is too small: 10x10 pixels, expected at least 32 on each side"):
        matcher.match(left[:10, :10], right[:10, :10])
    with pytest.raises(ValueError, match="view is 'both', expected left or right"):
        matcher.match(left, right, view="both")
    assert matcher.match(left[:32, :32], right[:32, :32]).disparity.shape == (32, 32)
    plain = np.full((64, 64, 3), 128, np.uint8)
    assert np.isfinite(matcher.match(plain, plain).disparity).all()


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (31, 200), (1, 4000)])
def test_small_and_narrow_images_are_told(matcher, size):
    image = np.zeros((*size, 3), np.uint8)
    with pytest.raises(ValueError, match=f"left is too small: {size[1]}x{size[0]} pixels.*expected at least 32"):
        matcher.match(image, image)


def test_wide_images(matcher, pair):
    left, right = (np.tile(image[:40], (1, 6, 1)) for image in pair)
    assert left.shape == (40, 960, 3)
    with pytest.raises(ValueError, match=r"960x40 pixels .160x7 after shrinking to max_size 160"):
        matcher.match(left, right, max_size=160)
    found = matcher.match(left, right, max_size=960)
    assert found.disparity.shape == (40, 960)
    assert np.isfinite(found.disparity).all()


def test_floats_that_are_no_numbers(matcher, pair):
    left, right = (image / 255 for image in pair)
    left[3, 4] = np.nan
    with pytest.raises(ValueError, match="holds NaN or infinite values"):
        matcher.match(left, right)


def test_views_of_two_kinds(matcher, pair):
    left, right = pair
    found = matcher.match(left, right.mean(2).astype(np.uint8))  # colour and grey
    assert np.median(np.abs(inner(found.disparity) - SHIFT)) < 1


def result():
    disparity = np.full((40, 60), 8.0, np.float32)
    disparity[:, 30:] = 20.25
    occlusion = np.zeros_like(disparity)
    occlusion[:, 20:30] = 1
    return Stereo(disparity, occlusion, 1 - occlusion)


def test_files(tmp_path):
    stereo = result()
    for suffix in (".npy", ".pfm", ".png"):
        stereo.save(tmp_path / f"d{suffix}")
        read = read_map(tmp_path / f"d{suffix}").astype(np.float32)
        np.testing.assert_array_equal(read / (256 if suffix == ".png" else 1), stereo.disparity)
    with pytest.raises(ValueError, match=r"unknown suffix '.tif', expected .npy or .pfm or .png"):
        stereo.save(tmp_path / "d.tif")
    far = Stereo(stereo.disparity * 20, stereo.occlusion, stereo.confidence)
    beyond = np.rint(far.disparity * 256) > 65535
    with pytest.warns(UserWarning, match=f"{beyond.sum():,} of {beyond.size:,} pixels .* they are 0 in it: unknown"):
        far.save(tmp_path / "e.png")
    read = read_map(tmp_path / "e.png")
    assert 0 < beyond.sum() < beyond.size
    assert not read[beyond].any()
    np.testing.assert_array_equal(read[~beyond] / 256, far.disparity[~beyond])


def test_points(tmp_path):
    stereo = result()
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    camera = StereoCamera(100.0, 0.5)
    points, colors = stereo.points(image, camera)
    assert points.shape == colors.shape == (40 * 50, 3)
    np.testing.assert_allclose(np.unique(points[:, 2]), [100 * 0.5 / 20.25, 6.25], rtol=1e-6)
    np.testing.assert_allclose(points[0], [-29.5 * 6.25 / 100, -19.5 * 6.25 / 100, 6.25], rtol=1e-6)
    np.testing.assert_array_equal(colors[0], image[0, 0])
    stereo.save_points(tmp_path / "p.ply", image, camera)
    head, _, body = (tmp_path / "p.ply").read_bytes().partition(b"end_header\n")
    assert b"element vertex 2000" in head
    assert len(body) == 2000 * 15
    np.testing.assert_allclose(np.frombuffer(body[:12], "<f4"), points[0])
    shifted = StereoCamera(100.0, 0.5, (10.0, 5.0), offset=2.0)
    np.testing.assert_allclose(stereo.points(image, shifted)[0][0], [-0.5, -0.25, 5.0], rtol=1e-6)
    with pytest.raises(ValueError, match="the calibration is for 30x30 pixels, and the images have 60x40"):
        stereo.points(image, StereoCamera(100.0, 0.5, size=(30, 30)))
    with pytest.raises(ValueError, match="expected the 60x40 of the disparity"):
        stereo.points(image[1:], camera)
    with pytest.raises(ValueError, match=r"expected .ply"):
        stereo.save_points(tmp_path / "p.obj", image, camera)


def test_depth(tmp_path):
    stereo = result()
    stereo.save_depth(tmp_path / "z.npy", StereoCamera(100.0, 0.5, offset=2.0))
    depth = np.load(tmp_path / "z.npy")
    assert depth.dtype == np.float32
    np.testing.assert_allclose(np.unique(depth), [50 / 22.25, 5.0], rtol=1e-6)
    stereo.save_depth(tmp_path / "half.npy", StereoCamera(200.0, 0.5, (60.0, 40.0), 4.0, (120, 80)))
    np.testing.assert_array_equal(np.load(tmp_path / "half.npy"), depth)  # of images twice as large
    stereo.disparity[0, 0] = 0
    with pytest.warns(UserWarning, match="1 of 2,400 pixels have depths of 256 and more"):
        stereo.save_depth(tmp_path / "z.png", StereoCamera(100.0, 0.5))
    read = read_map(tmp_path / "z.png")
    assert read[0, 0] == 0
    assert read[0, 1] == 256 * 50 / 8


def test_enlarged_maps_have_nothing_between_surfaces():
    step = torch.tensor([[[0.0, 0, 10, 10], [0, 0.5, 10, 10]]])
    out = resize_map(step, (6, 12))
    assert not ((out > 0.6) & (out < 9.9)).any()
    assert ((out > 0.1) & (out < 0.4)).any()  # but surfaces are smooth


def test_picture():
    stereo = result()
    picture = draw_disparity(stereo)
    assert picture.shape == (40 + 44, 320, 3)
    far, near = picture[20, 10].astype(int), picture[20, 50].astype(int)
    assert near.sum() > far.sum()  # near is bright
    assert len({tuple(pixel) for pixel in picture[20, 20:30].tolist()}) == 2  # hatched
    assert len({tuple(pixel) for pixel in picture[20, 0:20].tolist()}) == 1
    assert draw_disparity(stereo, max_side=30).shape == (20 + 44, 320, 3)
    assert (
        draw_disparity(Stereo(stereo.disparity * 0 + 3, stereo.occlusion * 0 + 1, stereo.confidence)).shape
        == picture.shape
    )


def test_command(files, tmp_path, capsys):
    options = [
        "--out",
        str(tmp_path / "d.png"),
        "--picture",
        str(tmp_path / "p.jpg"),
        "--points",
        str(tmp_path / "c.ply"),
    ]
    assert main(["stereo", *files, *options, "--focal", "700", "--baseline", "0.1"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("disparity ")
    assert captured.err == ""
    assert np.median(np.abs(inner(read_map(tmp_path / "d.png") / 256.0) - SHIFT)) < 1
    assert (tmp_path / "p.jpg").stat().st_size > 0
    assert (tmp_path / "c.ply").read_bytes().startswith(b"ply\n")
    assert main(["stereo", *files[::-1], "--view", "right", "--max-size", "128"]) == 0
    assert "are left and right exchanged" in capsys.readouterr().err


def test_folders_and_lists(pair, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for side, image in zip(("l", "r"), pair, strict=True):
        (tmp_path / side / "deep").mkdir(parents=True)
        Image.fromarray(image).save(tmp_path / side / "a.png")
        Image.fromarray(image[8:]).save(tmp_path / side / "deep" / "b.png")
    cameras = "cam0=[100 0 80; 0 100 48; 0 0 1]\ncam1=[100 0 84; 0 100 48; 0 0 1]\nbaseline=120\n"
    (tmp_path / "calib.txt").write_text(cameras)
    options = ["--out", "d", "--depth", "z", "--calib", "calib.txt"]
    assert main(["stereo", "l", "r", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ["a.png" in line for line in lines] == [True, False]
    assert np.median(np.abs(inner(np.load("d/a.npy")) - SHIFT)) < 1
    assert np.median(inner(np.load("z/deep/b.npy"))) == pytest.approx(100 * 0.12 / (SHIFT + 4), rel=0.1)
    assert main(["stereo", "l", "r", *options, "--skip-existing"]) == 0
    (tmp_path / "pairs.txt").write_text("l/a.png r/a.png\n# nothing\nl/deep/b.png r/deep/b.png\n")
    assert main(["stereo", "pairs.txt", "--picture", "p"]) == 0
    assert sorted(path.name for path in (tmp_path / "p").rglob("*.png")) == ["a.png", "b.png"]
    capsys.readouterr()
    (tmp_path / "r" / "deep" / "b.png").write_bytes(b"nothing")
    assert main(["stereo", "l", "r", "--out", "e"]) == 1
    assert "left out" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "e").rglob("*.npy")] == ["a.npy"]
    for words, message in (
        (["l", "r/a.png"], "expected the same names in both"),
        (["l", "l/deep"], "has no other"),
        (["calib.txt"], "expected 'left right'"),
    ):
        assert main(["stereo", *words]) == 2
        assert message in capsys.readouterr().err


def mistakes():
    """Arguments of quadtree stereo after {l} and {r}, and what the error must say."""
    return [
        (["{l}", "missing.png"], "missing.png does not exist"),
        (["{l}", "small.png"], "expected a rectified pair of one size"),
        (["dot.png", "dot.png"], "too small: 1x1"),
        (["{l}", "{r}", "--out", "d.txt"], "unknown suffix"),
        (["{l}", "{r}", "--out", "nowhere/d.npy"], "does not exist"),
        (["{l}", "{r}", "--out", "{r}"], "which is an input"),
        (["{l}", "{r}", "--points", "c.ply"], "--points needs --calib, or --focal and --baseline"),
        (["{l}", "{r}", "--focal", "5"], "are for --points, --depth and --turntable"),
        (["{l}", "{r}", "--points", "c.ply", "--calib", "c", "--focal", "5"], "leave out --focal and --baseline"),
        (["{l}", "{r}", "--calib", "{l}", "--depth", "z.npy"], "is not a text file in UTF-8"),
        (["{l}", "{r}", "--depth", "z.npy", "--focal", "5"], "--depth needs --calib"),
        (["{l}", "{r}", "--points", "c.ply", "--focal", "-5", "--baseline", "1"], "focal is -5.0"),
        (["{l}", "{r}", "--view", "up"], "expected left or right"),
        (["{l}", "{r}", "--model", "huge"], "unknown model 'huge', expected one of "),
        (["{l}", "{r}", "--model", "bad.safetensors"], "safetensors"),
        (["{l}", "{r}", "--model", "none.ckpt"], "none.ckpt does not exist"),
        (["{l}", "{r}", "--max-size", "5"], "max_size is 5"),
        (["{l}"], "RIGHT is missing, expected the right image of"),
    ]


@pytest.mark.parametrize("index", range(len(mistakes())))
def test_mistakes_end_in_one_line(index, files, pair, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(pair[0][:50]).save("small.png")
    Image.new("RGB", (1, 1)).save("dot.png")
    (tmp_path / "bad.safetensors").write_bytes(b"no weights")
    arguments, message = mistakes()[index]
    before = sorted(tmp_path.iterdir())
    assert main(["stereo", *(word.format(l=files[0], r=files[1]) for word in arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("quadtree: ")
    assert message in captured.err
    assert sorted(tmp_path.iterdir()) == before


def test_embedded_weights(tmp_path, random_weights):
    path = find("tiny", "stereo").path
    assert path.stat().st_size < 8e6
    assert path.with_suffix(".md").is_file()
    model = load("tiny", "stereo")
    assert not model.training
    assert model.config.attention == "quadtree_b"
    with pytest.raises(ValueError, match=r"is of a matcher, expected a stereo network"):
        load(random_weights, "stereo")  # a matcher's
    with pytest.raises(IsADirectoryError):
        load(tmp_path, "stereo")
    (tmp_path / "w.txt").touch()
    with pytest.raises(ValueError, match=r"unknown suffix '.txt'"):
        load(tmp_path / "w.txt", "stereo")
    torch.save({"state_dict": {}}, tmp_path / "w.ckpt")
    with pytest.raises(ValueError, match="holds no stereo network"):
        load(tmp_path / "w.ckpt", "stereo")


def test_stereo_loads_only_what_it_needs(files):
    code = f"from quadtree_attention.__main__ import main\nassert main({['stereo', *files]}) == 0"
    code += "\nimport sys; print('modules', *{name.partition('.')[0] for name in sys.modules})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = set(out.splitlines()[-1].split())
    assert not loaded & {"cv2", "lightning", "torchvision", "matplotlib", "timm", "rich", "pandas", "sympy"}
