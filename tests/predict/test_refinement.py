import cv2
import numpy as np
import pytest
import torch

from quadtree_attention.predict.refinement import refine, support
from quadtree_attention.predict.refinement_cpu import CpuSteps
from quadtree_attention.predict.refinement_torch import TorchSteps


def texture(height: int = 240, width: int = 320, seed: int = 0) -> np.ndarray:
    """A float32 picture with detail of several sizes, 0..1."""
    random = np.random.default_rng(seed)
    layers = [cv2.GaussianBlur(random.normal(size=(height, width)), (0, 0), s) * s for s in (1.5, 3.0, 6.0)]
    picture = sum(layers)
    return np.float32((picture - picture.min()) / np.ptp(picture))


def cells(height: int = 240, width: int = 320, margin: int = 40) -> np.ndarray:
    x, y = np.meshgrid(np.arange(margin, width - margin, 8), np.arange(margin, height - margin, 8))
    return np.stack([x.ravel(), y.ravel()], 1).astype(float)


def through(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    moved = np.c_[points, np.ones(len(points))] @ matrix.T
    return moved[:, :2] / moved[:, 2:]


TILT = np.array([[1.08, 0.12, -14.0], [-0.09, 0.93, 12.0], [2e-4, 1e-4, 1.0]])


def scene(noise: float = 1.0, wrong: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A picture, the same through `TILT` with another light, points of its cells, and where they are, by so many pixels wrong."""
    picture, random = texture(), np.random.default_rng(1)
    other = 0.7 * cv2.warpPerspective(picture, TILT, picture.shape[::-1], borderMode=cv2.BORDER_REFLECT_101) + 0.2
    points0 = cells()
    points1 = through(TILT, points0) + random.normal(0, noise, points0.shape)
    chosen = random.permutation(len(points0))[:wrong]
    points1[chosen] += random.uniform(12, 25, (wrong, 2)) * random.choice([-1, 1], (wrong, 2))
    return picture, np.float32(other), points0, points1


def errors(points0: np.ndarray, points1: np.ndarray) -> np.ndarray:
    return np.linalg.norm(through(TILT, points0) - points1, axis=1)


def test_matches_come_to_a_fraction_of_a_pixel():
    picture, other, points0, points1 = scene()
    found = refine(picture, other, points0, points1, np.full(len(points0), 0.5))
    before, after = errors(points0, points1), errors(found.points0, found.points1)
    assert np.median(before) > 1
    assert np.median(after) < 0.05
    assert np.quantile(after, 0.95) < 0.2
    assert np.median(found.likeness) > 0.98


def test_single_wrong_matches_give_in_to_their_neighbours_or_are_known():
    picture, other, points0, points1 = scene(wrong=120)
    found = refine(picture, other, points0, points1, np.full(len(points0), 0.5))
    after = errors(found.points0, found.points1)
    wrong = errors(points0, points1) > 8
    assert np.median(after[~wrong]) < 0.05
    still = after > 3
    assert still[wrong].any()
    assert np.median(found.stray[still, 1]) > 3
    assert np.median(found.stray[~still, 1]) < 0.1
    assert np.median(found.support[still, 0]) < 0.5 * np.median(found.support[~still, 0])


def test_points_move_to_what_can_be_seen():
    picture, other = np.full((2, 160, 160), 0.5, np.float32)
    cv2.rectangle(picture, (83, 78), (140, 140), 1.0, -1)
    cv2.rectangle(other, (85, 79), (142, 141), 1.0, -1)
    found = refine(picture, other, np.array([[80.0, 80.0]]), np.array([[81.0, 82.0]]), np.ones(1))
    np.testing.assert_array_less(np.abs(found.points0[0] - (83, 78)), 1.01)
    np.testing.assert_allclose(found.points1 - found.points0, [[2, 1]], atol=0.05)


def test_along_an_edge_a_match_stays_and_across_it_moves():
    x = np.arange(160) + np.zeros((160, 1))
    edge, moved = (np.float32(1 / (1 + np.exp(-(x - at) / 1.5))) for at in (80, 81.5))
    found = refine(edge, moved, np.array([[80.0, 80.0]]), np.array([[80.0, 80.6]]), np.ones(1))
    np.testing.assert_allclose(found.points1 - found.points0, [[1.5, 0.6]], atol=0.05)


def test_where_nothing_can_be_seen_nothing_moves():
    flat = np.full((100, 120), 0.3, np.float32)
    points = cells(100, 120, 16)
    found = refine(flat, flat, points, points + 0.4, np.ones(len(points)))
    np.testing.assert_array_equal(found.points0, points)
    np.testing.assert_allclose(found.points1, points + 0.4)
    assert not found.likeness.any()


def test_none_and_one_and_points_outside():
    picture = texture(80, 90)
    for points in (np.zeros((0, 2)), np.array([[20.0, 20.0]]), np.array([[-30.0, 500.0], [0.0, 0.0], [89.0, 79.0]])):
        found = refine(picture, picture, points, points, np.ones(len(points)))
        assert found.points0.shape == found.points1.shape == points.shape
        for name in ("likeness", "deviation", "stray", "support", "share"):
            values = getattr(found, name)
            assert len(values) == len(points)
            assert np.isfinite(values).all()


def test_any_number_of_threads_gives_the_same(monkeypatch):
    picture, other, points0, points1 = scene(wrong=50)
    weights = np.random.default_rng(3).uniform(0.2, 1, len(points0))
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(refine(picture, other, points0, points1, weights))
    finally:
        torch.set_num_threads(before)
    for other_result in results[1:]:
        for name in ("points0", "points1", "likeness", "deviation", "stray", "support", "share"):
            np.testing.assert_array_equal(getattr(results[0], name), getattr(other_result, name))


@pytest.mark.parametrize("height", [240, 97])
def test_the_kernels_do_what_pytorch_does(height):
    picture, other, points0, points1 = scene(noise=2, wrong=40)
    picture, other = picture[:height], other[: height + 20]
    weights = np.random.default_rng(3).uniform(0.2, 1, len(points0))
    numba, torch_steps = CpuSteps(picture, other), TorchSteps(picture, other, "cpu")
    field, same = (steps.local_maps(points0, points1, weights, 28.0, 6.0, 2.0) for steps in (numba, torch_steps))
    np.testing.assert_allclose(field, same, rtol=1e-9, atol=1e-9)
    corners, same = (steps.distinctive(points0) for steps in (numba, torch_steps))
    np.testing.assert_array_equal(corners, same)
    assert (corners != points0).any(1).mean() > 0.1
    aligned, same = (steps.align(corners, points1, field[:, :4], 3) for steps in (numba, torch_steps))
    for mine, theirs in zip(aligned, same, strict=True):
        # Sums of 169 float32 products in another order; Lucas and Kanade's steps converge to the same place.
        assert np.quantile(np.abs(mine - theirs), 0.98) < 1e-3


def test_support_tells_fields_from_chance():
    points = cells()
    random = np.random.default_rng(0)
    moved = through(TILT, points) + random.normal(0, 1, points.shape)
    ones = np.ones(len(points))
    assert support(points, moved, ones).mean() > 0.4
    assert support(points, random.uniform(0, 240, points.shape), ones).mean() < 0.05
    assert support(points[:0], moved[:0], ones[:0]).shape == (0,)
