import numpy as np
import pytest
from tests.support.geometry import first_hit, project

from quadtree_attention.data.matching.made_scenes import random_cameras
from quadtree_attention.data.matching.render import Rectangle, Scene, look_at, overlap

K = np.array([[60.0, 0, 39.5], [0, 60, 29.5], [0, 0, 1]])
SIZE = (60, 80)


def wall(texture, light=1.0, distance=2.0, width=4.0):
    """A wall across the way of a camera that looks along y."""
    return Rectangle(
        np.array([-width / 2, distance, width / 2]), np.array([width, 0, 0.0]), np.array([0, 0, -width]), texture, light
    )


def test_depth_is_that_of_the_first_surface(maker):
    rng = np.random.default_rng(0)
    for number in range(3):
        place = maker(number)
        cameras = random_cameras(rng, place, SIZE)
        view = place.scene.render(cameras.K, cameras.pose0, SIZE)
        for _ in range(60):
            x, y = int(rng.integers(SIZE[1])), int(rng.integers(SIZE[0]))
            _, _, z = first_hit(place.scene.rectangles, cameras.K, cameras.pose0, x, y)
            assert view.depth[y, x] == pytest.approx(0 if np.isinf(z) else z, rel=1e-5)


def test_a_dot_is_seen_where_it_is_projected_to():
    columns, rows = np.meshgrid(np.arange(400), np.arange(400))
    dot = np.uint8(np.rint(255 * np.exp(-((columns - 230.0) ** 2 + (rows - 150.0) ** 2) / (2 * 6.0**2))))
    rectangle = wall(dot)
    # The centre of texel 230 of 400 lies at (230.5 / 400) of the side.
    point = rectangle.corner + 230.5 / 400 * rectangle.across + 150.5 / 400 * rectangle.down
    scene = Scene([rectangle], sky=0)
    for position, target, roll in (((0.0, 0, 0), (0.2, 2, 0.1), 0.0), ((0.7, 0.3, -0.5), (0, 2, 0.3), 0.4)):
        pose = look_at(np.array(position), np.array(target), roll)
        image = scene.render(K, pose, SIZE).image.astype(float)
        y, x = np.mgrid[: SIZE[0], : SIZE[1]]
        centre = np.array([(image * x).sum(), (image * y).sum()]) / image.sum()
        np.testing.assert_allclose(
            centre, project(point, K, pose), atol=0.12
        )  # perspective moves the centre of mass a little


def test_far_textures_are_averaged():
    fine = np.tile(np.uint8([[0, 255], [255, 0]]), (256, 256))
    view = Scene([wall(fine, distance=2.0)]).render(K, look_at(np.zeros(3), np.array([0.0, 2, 0])), SIZE)
    seen = view.image[view.depth > 0]
    assert (np.abs(seen.astype(int) - 127.5) < 3).all()


def test_sky_light_and_both_sides():
    grey = np.full((8, 8), 100, np.uint8)
    scene = Scene([wall(grey, light=0.5, width=1.0)], sky=33)
    for y, ahead in ((0.0, 2.0), (4.0, 2.0)):
        view = scene.render(K, look_at(np.array([0, y, 0]), np.array([0.0, ahead, 0])), SIZE)
        assert set(np.unique(view.image)) == {33, 50}
        assert view.depth[30, 40] == pytest.approx(2.0)
        assert view.depth[0, 0] == 0
    away = scene.render(K, look_at(np.zeros(3), np.array([0.0, -2, 0])), SIZE)
    assert (away.depth == 0).all()


def test_overlap():
    scene = Scene([wall(np.zeros((4, 4), np.uint8), width=40.0)])
    pose0 = look_at(np.zeros(3), np.array([0.0, 1, 0]))
    # 80 pixels of a focal length of 60 show 2.67 m of a wall at 2 m: a step of 0.667 m leaves three quarters.
    pose1 = look_at(np.array([2 / 3, 0, 0]), np.array([2 / 3, 1, 0]))
    depths = [scene.depth(K, pose, SIZE) for pose in (pose0, pose1)]
    assert overlap(*depths, K, pose1 @ np.linalg.inv(pose0)) == pytest.approx(0.75, abs=0.02)
    assert overlap(depths[0], depths[0], K, np.eye(4)) == 1
    turned = look_at(np.zeros(3), np.array([0.0, -1, 0]))
    assert overlap(depths[0], depths[1], K, turned @ np.linalg.inv(pose0)) == 0


def test_nothing_to_see():
    with pytest.raises(ValueError, match="got no rectangles"):
        Scene([])
