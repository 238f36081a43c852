"""Calibration files of three kinds: what they say, in which pixels, and which are none."""

import numpy as np
import pytest

from quadtree_attention.data.stereo.calibration import StereoCamera, read_calibration

MIDDLEBURY = """cam0=[3997.684 0 1176.728; 0 3997.684 1011.728; 0 0 1]
cam1=[3997.684 0 1307.839; 0 3997.684 1011.728; 0 0 1]
doffs=131.111
baseline=193.001
width=2964
height=1988
ndisp=280
"""
KITTI = """calib_time: 09-Jan-2012 13:57:47
corner_dist: 9.950000e-02
S_rect_02: 1.242000e+03 3.750000e+02
P_rect_00: 7.215377e+02 0 6.095593e+02 0 0 7.215377e+02 1.728540e+02 0 0 0 1 0
P_rect_01: 7.215377e+02 0 6.095593e+02 -3.875744e+02 0 7.215377e+02 1.728540e+02 0 0 0 1 0
P_rect_02: 7.215377e+02 0 6.095593e+02 4.485728e+01 0 7.215377e+02 1.728540e+02 2.163791e-01 0 0 1 2.745884e-03
P_rect_03: 7.215377e+02 0 6.095593e+02 -3.395242e+02 0 7.215377e+02 1.728540e+02 2.199936e+00 0 0 1 2.729905e-03
"""
OPENCV = """%YAML:1.0
---
R1: !!opencv-matrix
   rows: 3
   cols: 3
   dt: d
   data: [ 1., 0., 0., 0., 1., 0., 0., 0., 1. ]
P1: !!opencv-matrix
   rows: 3
   cols: 4
   dt: d
   data: [ 5.3e+02, 0., 3.2e+02, 0., 0., 5.3e+02, 2.4e+02, 0.,
       0., 0., 1., 0. ]
P2: !!opencv-matrix
   rows: 3
   cols: 4
   dt: d
   data: [ 5.3e+02, 0., 3.3e+02, -1.59e+03, 0., 5.3e+02, 2.4e+02, 0.,
       0., 0., 1., 0. ]
"""


def written(tmp_path, text, name="calib.txt"):
    (tmp_path / name).write_text(text)
    return tmp_path / name


def test_middlebury(tmp_path):
    camera = read_calibration(written(tmp_path, MIDDLEBURY))
    assert camera == StereoCamera(3997.684, 193.001 / 1000, (1176.728, 1011.728), 131.111, (2964, 1988))
    np.testing.assert_allclose(camera.depth(np.array([80.0])), [193.001e-3 * 3997.684 / (80 + 131.111)], rtol=1e-6)
    without = read_calibration(written(tmp_path, MIDDLEBURY.replace("doffs=131.111\n", "")))
    assert without.offset == pytest.approx(131.111)


def test_smaller_images_than_the_calibration_is_for(tmp_path):
    camera = read_calibration(written(tmp_path, MIDDLEBURY))
    half = camera.of_images((1482, 994))
    assert half.focal == pytest.approx(camera.focal / 2)
    assert half.center == pytest.approx((1176.728 / 2 - 0.25, 1011.728 / 2 - 0.25))
    np.testing.assert_allclose(half.depth(np.array([40.0])), camera.depth(np.array([80.0])), rtol=1e-6)
    assert camera.of_images((741, 497)).focal == pytest.approx(camera.focal / 4, rel=1e-3)
    with pytest.raises(ValueError, match="the calibration is for 2964x1988 pixels, and the images have 1000x1000"):
        camera.of_images((1000, 1000))
    assert StereoCamera(100.0, 1.0).of_images((5, 7)).focal == 100


def test_kitti(tmp_path):
    camera = read_calibration(written(tmp_path, KITTI))
    assert camera.baseline == pytest.approx((44.85728 + 339.5242) / 721.5377)  # 0.53 m
    assert camera.size == (1242, 375)
    assert camera.offset == 0
    kept = [line.replace("_rect_0", "") for line in KITTI.splitlines() if line.startswith(("P_rect_00", "P_rect_01"))]
    camera = read_calibration(written(tmp_path, "\n".join(kept)))  # as in its odometry, with grey cameras alone
    assert camera.baseline == pytest.approx(387.5744 / 721.5377)


def test_opencv(tmp_path):
    camera = read_calibration(written(tmp_path, OPENCV, "extrinsics.yml"))
    assert camera == StereoCamera(530.0, 3.0, (320.0, 240.0), 10.0)
    right = camera.of_right()
    assert right.center == (330.0, 240.0)
    assert right.depth(np.array([43.0])) == pytest.approx([30.0])
    assert np.isinf(camera.depth(np.array([-10.0, -20.0]))).all()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is no calibration of a stereo pair that is known here"),
        ("hello", "expected Middlebury's calib.txt"),
        (MIDDLEBURY.replace("baseline=193.001", ""), "baseline is missing"),
        (MIDDLEBURY.replace("193.001", "-1"), "baseline is -0.001, expected a number above 0"),
        (MIDDLEBURY.replace("1307.839", "nan"), "cam1 is .*, expected 9 finite numbers"),
        (MIDDLEBURY.replace("0 0 1]", "0 1]"), "cam0 is .*, expected 9 finite numbers"),
        (KITTI.replace("-3.395242e+02", "3.395242e+02"), "the second camera is 0.4083.* to the left of the first one"),
        (KITTI.replace("-3.395242e+02", "4.485728e+01"), "at a distance of 0"),
        (OPENCV.replace("-1.59e+03, ", ""), "P2 is .*, expected 12 finite numbers"),
        (OPENCV.replace("P2:", "P3:"), "P2 is missing"),
    ],
)
def test_mistakes(tmp_path, text, words):
    path = written(tmp_path, text)
    with pytest.raises(ValueError, match=words) as caught:
        read_calibration(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00cam0=")
    with pytest.raises(ValueError, match="is not a text file in UTF-8"):
        read_calibration(tmp_path / "binary.txt")
    with pytest.raises(FileNotFoundError):
        read_calibration(tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"focal": 0}, "focal is 0"),
        ({"baseline": float("inf")}, "baseline is inf"),
        ({"offset": float("nan")}, "a principal point is nan"),
    ],
)
def test_cameras_that_cannot_be(changes, words):
    with pytest.raises(ValueError, match=words):
        StereoCamera(**({"focal": 1.0, "baseline": 1.0} | changes))
