"""Synthetic stereo pairs: exactness of disparity and occlusion, and independence of samples."""

import cv2
import numpy as np
import pytest
import torch

from quadtree_attention.data.stereo.scenes import Paint, Scene, Surface, random_paint, random_surfaces, render_pair
from quadtree_attention.data.stereo.synthetic import StereoData, StereoDataset, Views, change_light

SIZE = (48, 96)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for n in range(3):
        coarse = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{n}.png"), cv2.resize(coarse, (128, 96), interpolation=cv2.INTER_CUBIC))
    return sorted(folder.iterdir())


def surface(plane, outline=None, bumps=(), **paint):
    photo = np.random.default_rng(0).integers(0, 256, (48, 140, 3), dtype=np.uint8)
    outlines = None if outline is None else [np.array(outline, float)]
    paint = Paint(photo, np.array([[1.0, 0, 0], [0, 1, 0]]), **paint)
    return Surface(np.array(plane), outlines, paint, np.array(bumps, float).reshape(-1, 5))


def test_a_shifted_plane():
    (left, disparity, hidden), (right, disparity_right, hidden_right) = render_pair([surface([0.0, 0, 7])], SIZE)
    assert (disparity == 7).all()
    assert (disparity_right == 7).all()
    np.testing.assert_array_equal(left[:, 7:], right[:, :-7])
    assert hidden[:, :7].all()
    assert not hidden[:, 7:].any()
    assert hidden_right[:, -7:].all()
    assert not hidden_right[:, :-7].any()


def test_a_square_hides_what_is_behind():
    square = [[40, 10], [60, 10], [60, 30], [40, 30]]
    (_, disparity, hidden), (_, disparity_right, hidden_right) = render_pair(
        [surface([0.0, 0, 2]), surface([0.0, 0, 12], square)], SIZE
    )
    assert (disparity[12:29, 42:59] == 12).all()
    assert (disparity_right[12:29, 30:47] == 12).all()
    assert np.flatnonzero(hidden[20]).tolist() == [
        0,
        1,
        *range(30, 40),
    ]  # left of the square, as far as it moves against the back
    assert np.flatnonzero(hidden_right[20]).tolist() == [*range(49, 59), 94, 95]
    assert not hidden[5, 2:].any()


def test_a_slanted_plane_is_the_same_in_both_views():
    (_, disparity, hidden), (_, disparity_right, _) = render_pair([surface([0.1, -0.05, 5.0])], SIZE)
    y, x = np.nonzero(~hidden)
    place = x - disparity[y, x]
    assert disparity[10, 20] == pytest.approx(0.1 * 20 - 0.05 * 10 + 5)
    for row in (3, 40):
        mine = y == row
        there = np.interp(place[mine], np.arange(SIZE[1]), disparity_right[row])
        np.testing.assert_allclose(there, disparity[row, x[mine]], atol=1e-4)


def test_seen_pixels_look_alike(photos):
    """Where both views show a pixel, the right image, moved by the disparity, is the left one."""
    errors = {True: [], False: []}
    dataset = StereoDataset(photos, SIZE, views=Views(same_light=1.0, noise=0, blurred=0, shift=0, tilt=0, light=1.0))
    for sample in dataset[0], dataset[1], dataset[2], dataset[3]:
        left, right, disparity, hidden = (sample[k].numpy() for k in ("left", "right", "disparity", "occluded"))
        assert left.min() >= 0
        assert left.max() <= 1
        assert disparity.min() >= 0
        x = np.arange(SIZE[1], dtype=np.float32) - disparity
        y = np.repeat(np.arange(SIZE[0], dtype=np.float32)[:, None], SIZE[1], 1)
        moved = cv2.remap(right.transpose(1, 2, 0), x, y, cv2.INTER_LINEAR)
        error = np.abs(moved - left.transpose(1, 2, 0)).mean(2)
        for state in (True, False):
            errors[state] += error[hidden == state].tolist()
    assert np.mean(errors[False]) < 0.03 < 0.1 < np.mean(errors[True])


def test_samples_depend_on_their_number_alone(photos):
    dataset = StereoDataset(photos, SIZE, length=3, seed=5)
    first = dataset[7]
    _ = dataset[2]
    again = StereoDataset(photos, SIZE, length=10, seed=5)[7]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["left"], StereoDataset(photos, SIZE, seed=6)[7]["left"])
    shapes = {name: (tuple(x.shape), x.dtype) for name, x in first.items()}
    for name in ("left", "right"):
        assert shapes[name] == ((3, *SIZE), torch.float32)
    for name in ("disparity", "disparity_right"):
        assert shapes[name] == (SIZE, torch.float32)
    for name in ("occluded", "occluded_right"):
        assert shapes[name] == (SIZE, torch.bool)


def test_a_curved_surface_is_the_same_in_both_views():
    bump = [48, 20, 30, 20, 4.0]
    curved = surface([0.05, 0.0, 6.0], bumps=[bump])
    (left, disparity, hidden), (right, disparity_right, _) = render_pair([curved], SIZE)
    assert disparity[20, 48] == pytest.approx(0.05 * 48 + 6 + 4)
    for row in (5, 20, 40):
        x = np.flatnonzero(~hidden[row])
        there = x - disparity[row, x]
        np.testing.assert_allclose(
            np.interp(there, np.arange(SIZE[1]), disparity_right[row]), disparity[row, x], atol=2e-2
        )
    place = curved.left_place(np.array([10.0, 33.3]), np.array([20.0, 20.0]))
    np.testing.assert_allclose(place - curved.disparity(place, np.array([20.0, 20.0])), [10.0, 33.3], atol=1e-4)
    assert np.abs(left[20, 30:60] - right[20, 20:50]).mean() > 5  # it is no shift


def test_edges_are_mixed_and_disparities_are_not():
    diamond = [[30.5, 24], [48, 6.5], [65.5, 24], [48, 41.5]]
    white, black = (np.full((48, 140, 3), value, np.uint8) for value in (255, 0))
    place = np.array([[1.0, 0, 0], [0, 1, 0]])
    back = Surface(np.array([0.0, 0, 2]), None, Paint(black, place))
    front = Surface(np.array([0.0, 0, 9]), [np.array(diamond)], Paint(white, place))
    (image, disparity, _), _ = render_pair([back, front], SIZE)
    assert np.unique(disparity).tolist() == [2, 9]
    assert ((image > 20) & (image < 235)).mean() > 0.005
    assert image[24, 48].tolist() == [255, 255, 255]


def test_reflections_lie_at_another_depth():
    photo = np.random.default_rng(1).integers(0, 256, (48, 140, 3), dtype=np.uint8)
    (left, _, _), (right, _, _) = render_pair([surface([0.0, 0, 7], gloss=1.0, reflection=photo, depth=5.0)], SIZE)
    np.testing.assert_array_equal(left[:, 12:], right[:, :-12])


def test_kinds_of_surfaces():
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (96, 128, 3), dtype=np.uint8)
    made = random_surfaces(rng, [photo], SIZE, Scene(layers=(8, 8), thin=1.0, flat=1.0, room=0.0, glossy=0.0))
    assert len(made) == 9
    for rods in made[1:]:
        for rod in rods.outlines:
            assert np.linalg.norm(np.diff(rod, axis=0), axis=1).min() <= 6.001
        assert rods.paint.flat >= 0.9
    assert max(len(rods.outlines) for rods in made[1:]) > 2  # a bunch
    plain, textured = (render_pair([one], SIZE)[0][0].std((0, 1)).mean() for one in (made[0], surface([0.0, 0, 3])))
    assert plain < 0.2 * textured
    room = random_surfaces(rng, [photo], SIZE, Scene(layers=(0, 0), room=1.0))
    assert len(room) >= 2
    floor = render_pair(room, SIZE)[0][1]
    assert floor[-1].mean() > floor[0].mean() + 1
    tile = random_paint(rng, [photo], SIZE, Scene(flat=0, repeated=1.0))
    assert tile.tiled
    assert tile.photo.shape[0] <= 64
    assert all(len(one.bumps) for one in random_surfaces(rng, [photo], SIZE, Scene(curved=1.0))[-3:])
    nearest = [render_pair(random_surfaces(rng, [photo], SIZE, Scene()), SIZE)[0][1].max() for _ in range(8)]
    assert max(nearest) > 3 * min(nearest)  # scenes differ in depth


def test_light_differs_between_views():
    image = np.full((*SIZE, 3), 100, np.float32)
    none = {"noise": 0, "blurred": 0, "spots": 0, "jpeg": 0}
    same = change_light(np.random.default_rng(0), image, image, Views(same_light=1.0, **none))
    np.testing.assert_array_equal(*same)
    left, right = change_light(np.random.default_rng(0), image, image, Views(same_light=0.0, **none))
    assert np.abs(left - right).mean() > 0.005
    left, right = change_light(np.random.default_rng(0), image, image, Views(same_light=1.0, **none | {"spots": 1.0}))
    assert left.std() > 0.01
    assert np.abs(left - right).max() > 0.02
    noise = np.random.default_rng(1).uniform(0, 255, (*SIZE, 3)).astype(np.float32)
    left, right = change_light(np.random.default_rng(0), noise, noise, Views(same_light=1.0, **none | {"jpeg": 1.0}))
    np.testing.assert_array_equal(left, right)
    assert (
        0.01
        < np.abs(left - change_light(np.random.default_rng(0), noise, noise, Views(same_light=1.0, **none))[0]).mean()
        < 0.3
    )


def test_rows_that_are_off_move_the_image_alone():
    off = np.array([[1, 0, 0], [0, 1, 1.0], [0, 0, 1]])
    ideal, taken = (render_pair([surface([0.0, 0, 7])], SIZE, matrix)[1] for matrix in (None, off))
    np.testing.assert_array_equal(taken[1], ideal[1])
    np.testing.assert_array_equal(taken[0][:-1], ideal[0][1:])


def test_datamodule(photos):
    folder = str(photos[0].parent)
    data = StereoData(folder, folder, SIZE, batch_size=2, length=5, val_length=3, num_workers=0)
    assert len(list(data.train_dataloader())) == 2
    first, second = ([batch["disparity"] for batch in data.val_dataloader()] for _ in range(2))
    assert [len(batch) for batch in first] == [2, 1]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(ValueError, match="length is 5, expected at least one batch of 8"):
        StereoData(folder, folder, SIZE, batch_size=8, length=5).train_dataloader()


def test_options_that_make_no_sense(photos):
    with pytest.raises(ValueError, match="got no photographs"):
        StereoDataset([])
    with pytest.raises(ValueError, match="size is 16x96"):
        StereoDataset(photos, (16, 96))
