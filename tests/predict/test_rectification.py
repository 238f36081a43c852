"""Rectification of known cameras: equal rows, the left view first, and depth in proportion."""

import cv2
import numpy as np
import pytest

from quadtree_attention.data.stereo.calibration import read_calibration
from quadtree_attention.errors import InputError
from quadtree_attention.predict.rectification import rectify

SIZE = (640, 480)
FOCAL = 700.0
K = np.array([[FOCAL, 0, 319.5], [0, FOCAL, 239.5], [0, 0, 1]])


def cloud(count=400):
    return np.random.default_rng(0).uniform((-2, -1.5, 4), (2, 1.5, 9), (count, 3))


def seen(points, turn, centre):
    """Pixels ``[M, 2]`` and depths ``[M]`` of a camera that is turned by a rotation vector and stands at a place."""
    there = (points - centre) @ cv2.Rodrigues(np.array(turn, float))[0].T
    pixels = there @ K.T
    return pixels[:, :2] / pixels[:, 2:], there[:, 2]


def moved(homography, points):
    return cv2.perspectiveTransform(points[:, None].astype(np.float64), homography)[:, 0]


@pytest.mark.parametrize("focal", [FOCAL, None])
@pytest.mark.parametrize("side", [1, -1])
def test_known_cameras(side, focal, tmp_path):
    points = cloud()
    a, _ = seen(points, (0, 0, 0), (0, 0, 0))
    b, _ = seen(points, (0.03, -0.12 * side, 0.05), (0.8 * side, 0.05, 0.1))
    found = rectify(a, b, SIZE, SIZE, focal)
    assert found.swapped == (side < 0)
    views = [moved(found.homography0, a), moved(found.homography1, b)]
    left, right = views[::-1] if found.swapped else views
    # With the true focal length all that is left is rounding in float32; a wrong one is made up for up to a part of a pixel.
    assert np.abs(left - right)[:, 1].max() < (0.01 if focal else 0.5)
    disparity = (left - right)[:, 0]
    assert disparity.min() > 0
    assert found.disparity[0] <= np.median(disparity) <= found.disparity[1]
    if focal:
        # Where a pixel of the rectified left image is in space, by its disparity: the points again, but for a rotation and the unit of length.
        camera = found.camera
        z = camera.focal * camera.baseline / (disparity + camera.offset)
        there = np.column_stack([(left - camera.center) / camera.focal, np.ones(len(z))]) * z[:, None]
        unit = np.linalg.norm((0.8, 0.05, 0.1))
        pairs = np.random.default_rng(1).integers(0, len(z), (500, 2)).T
        apart, truth = (np.linalg.norm(x[pairs[0]] - x[pairs[1]], axis=1) for x in (there * unit, points))
        np.testing.assert_allclose(apart, truth, atol=0.02)
    found.save_calibration(tmp_path / "calib.yml")
    read = read_calibration(tmp_path / "calib.yml")
    assert read.focal == pytest.approx(found.camera.focal)
    assert read.baseline == pytest.approx(1)
    assert read.offset == pytest.approx(found.camera.offset)
    assert read.center == pytest.approx(found.camera.center)
    assert read.size == found.size


def test_images_are_turned():
    """A pixel of the rectified images shows what the homography says."""
    points = cloud()
    a, b = seen(points, (0, 0, 0), (0, 0, 0))[0], seen(points, (0, -0.1, 0.04), (0.8, 0, 0))[0]
    found = rectify(a, b, SIZE, SIZE, FOCAL)
    images = [np.zeros(SIZE[::-1], np.uint8) for _ in range(2)]
    inside = [k for k in range(len(a)) if ((a[k] > 8) & (a[k] < 470) & (b[k] > 8) & (b[k] < 470)).all()][:1]
    for image, view in zip(images, (a, b), strict=True):
        x, y = np.rint(view[inside[0]]).astype(int)
        image[y - 3 : y + 4, x - 3 : x + 4] = 255
    for image, homography, view in zip(
        found.warp(*images), (found.homography0, found.homography1), (a, b), strict=True
    ):
        assert image.shape == found.size[::-1]
        y, x = (axis.mean() for axis in np.nonzero(image > 127))
        assert np.hypot(*(moved(homography, view[inside])[0] - (x, y))) < 1


@pytest.mark.parametrize(
    ("turn", "centre", "words"),
    [
        ((0, 0, 0), (0.02, 0, 1.0), "forwards or backwards"),
        ((0, 0, 0), (0.1, 1.0, 0), "rotate both photographs by 90 degrees"),
        ((0.02, 0.1, 0), (0, 0, 0), "one homography explains the matches"),
    ],
)
def test_motions_that_cannot_be(turn, centre, words):
    a, b = seen(cloud(), (0, 0, 0), (0, 0, 0))[0], seen(cloud(), turn, centre)[0]
    with pytest.raises(InputError, match=words):
        rectify(a, b, SIZE, SIZE, FOCAL)


@pytest.mark.parametrize("count", [0, 5, 300])
def test_matches_that_do_not_agree(count):
    a, b = np.random.default_rng(0).uniform(0, 480, (2, count, 2))
    with pytest.raises(
        InputError, match=f" of {count} matches agree with one motion of the camera, expected at least 20"
    ):
        rectify(a, b, SIZE, SIZE)
