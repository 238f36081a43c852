import numpy as np
import pytest

from quadtree_attention.predict.tracks import one_to_one, shared_keypoints


class TestSharedKeypoints:
    @pytest.mark.parametrize("seed", range(3))
    def test_each_point_is_near_its_keypoint_and_keypoints_are_apart(self, seed):
        rng = np.random.default_rng(seed)
        points = np.concatenate([rng.uniform(0, 40, (300, 2)), rng.integers(0, 5, (200, 2)) * 8.0])
        keypoints, ids = shared_keypoints(points, rng.uniform(0.2, 1, 500), 2.0)
        apart = np.linalg.norm(keypoints[:, None] - keypoints, axis=2) + 1e9 * np.eye(len(keypoints))
        away = np.linalg.norm(points[:, None] - keypoints, axis=2)
        assert apart.min() > 2.0
        assert away[np.arange(500), ids].max() <= 2.0 + 1e-4
        np.testing.assert_allclose(away[np.arange(500), ids], away.min(1), atol=1e-4)

    def test_the_best_point_stands_for_its_neighbours(self):
        points = np.array([[10.0, 10], [11, 10], [11, 10], [20, 20], [20.5, 20]])
        keypoints, ids = shared_keypoints(points, np.array([0.9, 0.5, 0.5, 0.3, 0.4]), 2.0)
        assert keypoints.tolist() == [[11, 10], [20.5, 20]], "two of 0.5 at one place count more than one of 0.9"
        assert ids.tolist() == [0, 0, 0, 1, 1]

    def test_the_order_of_points_makes_no_difference(self):
        rng = np.random.default_rng(0)
        points, scores = rng.integers(0, 20, (100, 2)).astype(float), rng.integers(1, 3, 100) / 2
        order = rng.permutation(100)
        keypoints, ids = shared_keypoints(points, scores, 1.5)
        again, other = shared_keypoints(points[order], scores[order], 1.5)
        assert keypoints.tolist() == again.tolist()
        assert ids[order].tolist() == other.tolist()

    def test_radius_nought_keeps_all_places(self):
        keypoints, ids = shared_keypoints(np.array([[1.0, 1], [1, 1.01], [1, 1]]), np.ones(3), 0.0)
        assert len(keypoints) == 2
        assert ids[0] == ids[2] != ids[1]

    def test_nothing(self):
        keypoints, ids = shared_keypoints(np.zeros((0, 2)), np.zeros(0), 2.0)
        assert (keypoints.shape, ids.shape) == ((0, 2), (0,))


def test_one_to_one():
    ids0, ids1 = np.array([3, 3, 1, 0, 2]), np.array([5, 6, 6, 7, 7])
    scores = np.array([0.4, 0.9, 0.8, 0.5, 0.5])
    # 3-6 beats 3-5 and 1-6; of 0-7 and 2-7 the first
    assert one_to_one(ids0, ids1, scores).tolist() == [3, 1]
    assert one_to_one(ids0[:0], ids1[:0], scores[:0]).tolist() == []
