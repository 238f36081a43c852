import cv2
import numpy as np
import pytest

from quadtree_attention.evaluation import metrics

K0 = np.array([[500.0, 0, 320], [0, 510, 240], [0, 0, 1]])
K1 = np.array([[600.0, 0, 300], [0, 580, 220], [0, 0, 1]])


def scene(seed=0, points=200, noise=0.0, wrong=0):
    """Projections [points, 2] of random points into two cameras and their relative pose [4, 4]; the first ones wrong."""
    rng = np.random.default_rng(seed)
    T = np.eye(4)
    T[:3, :3] = cv2.Rodrigues(rng.normal(0, 0.2, 3))[0]
    T[:3, 3] = rng.normal(0, 1, 3)
    X = rng.uniform([-2, -2, 4], [2, 2, 9], (points, 3))
    x0, x1 = X @ K0.T, (X @ T[:3, :3].T + T[:3, 3]) @ K1.T
    kpts0, kpts1 = x0[:, :2] / x0[:, 2:], x1[:, :2] / x1[:, 2:]
    kpts1[:wrong] = rng.uniform(0, 600, (wrong, 2))
    return kpts0 + rng.normal(0, noise, kpts0.shape), kpts1 + rng.normal(0, noise, kpts1.shape), T


class TestErrorAuc:
    def test_by_hand(self):
        # the curve of the errors 1, 3, 7: (0, 0), (1, 1/3), (3, 2/3), then level to 5
        area = 1 * (1 / 3) / 2 + 2 * (1 / 3 + 2 / 3) / 2 + 2 * (2 / 3)
        assert metrics.error_auc([7, 1, 3], [5])["auc@5"] == pytest.approx(area / 5)

    def test_recorded_values(self):
        """Values that the code published with LoFTR gives for these errors."""
        areas = metrics.error_auc([0.5, 4.9, 5.0, 12.0, 19.0, np.inf, np.inf], (5, 10, 20))
        assert areas == pytest.approx({"auc@5": 1.41 / 7, "auc@10": 2.21 / 7, "auc@20": 3.405 / 7}, abs=1e-12)

    def test_an_error_equal_to_the_threshold_is_not_below_it(self):
        assert metrics.error_auc([5.0], [5])["auc@5"] == 0

    def test_all_right_all_failed_none(self):
        assert metrics.error_auc(np.zeros(4), [5, 0.5]) == {"auc@5": 1.0, "auc@0.5": 1.0}
        assert metrics.error_auc([np.inf, np.nan], [5])["auc@5"] == 0
        assert metrics.error_auc([], [5])["auc@5"] == 0

    def test_failures_weigh(self):
        assert metrics.error_auc([0.0, np.inf], [5])["auc@5"] == pytest.approx(0.5)

    @pytest.mark.parametrize("threshold", [0, -1, float("nan")])
    def test_bad_threshold(self, threshold):
        with pytest.raises(ValueError, match="expected a positive number"):
            metrics.error_auc([1.0], [threshold])


class TestHomography:
    def test_corner_error_of_a_shift_is_its_length(self):
        H = np.array([[1.0, 0, 3], [0, 1, 4], [0, 0, 1]])
        assert metrics.homography_corner_error(H, np.eye(3), (48, 64)) == pytest.approx(5)

    def test_corners_are_the_centres_of_the_last_pixels(self):
        assert metrics.homography_corner_error(np.diag([2.0, 1, 1]), np.eye(3), (11, 21)) == pytest.approx(10)

    def test_scale_and_sign_of_the_estimate_mean_nothing(self):
        H = np.array([[1.1, 0.1, 3], [0.05, 0.9, 4], [1e-4, 2e-4, 1]])
        assert metrics.homography_corner_error(-7 * H, H, (48, 64)) == pytest.approx(0, abs=1e-9)

    @pytest.mark.parametrize("H", [None, np.full((3, 3), np.nan), np.array([[1.0, 0, 0], [0, 1, 0], [-0.1, 0, 1]])])
    def test_no_estimate_or_one_through_infinity(self, H):
        assert metrics.homography_corner_error(H, np.eye(3), (48, 64)) == np.inf

    def test_reprojection_errors(self):
        H = np.array([[2.0, 0, 1], [0, 2, 0], [0, 0, 2]])
        errors = metrics.reprojection_errors([[2, 2], [4, 0]], [[2.5, 2], [4.5, 3]], H)
        np.testing.assert_allclose(errors, [0, 3], atol=1e-12)

    def test_a_point_on_the_horizon(self):
        H = np.array([[1.0, 0, 0], [0, 1, 0], [-0.1, 0, 1]])
        assert np.isinf(metrics.reprojection_errors([[10, 0]], [[0, 0]], H)).all()

    def test_estimate_homography_among_wrong_matches(self):
        rng = np.random.default_rng(0)
        H = np.array([[0.9, -0.1, 20], [0.1, 1.1, -5], [1e-4, 5e-5, 1]])
        kpts0 = rng.uniform(0, 600, (200, 2))
        kpts1 = metrics.warp_points(H, kpts0)
        kpts1[:60] = rng.uniform(0, 600, (60, 2))
        found, inliers = metrics.estimate_homography(kpts0, kpts1)
        assert metrics.homography_corner_error(found, H, (600, 600)) < 0.1
        assert inliers[60:].all()
        assert inliers[:60].sum() <= 3

    @pytest.mark.parametrize("points", [np.zeros((0, 2)), np.zeros((3, 2)), np.c_[np.arange(9.0), np.zeros(9)]])
    def test_estimate_homography_without_a_solution(self, points):
        found, inliers = metrics.estimate_homography(points, points)
        assert metrics.homography_corner_error(found, np.diag([2.0, 1, 1]), (48, 64)) > 1
        assert inliers.shape == (len(points),)


class TestDisparity:
    disparity = np.array([[np.nan, 4.0, 0.0], [2.0, 4.0, np.inf]])

    def test_errors(self):
        kpts0 = [[1, 0], [1.4, 0.6], [0, 1]]
        kpts1 = [[-3, 0], [-2.6, 2.6], [-5, 1]]
        np.testing.assert_allclose(metrics.disparity_errors(kpts0, kpts1, self.disparity), [0, 2, 3])

    @pytest.mark.parametrize("point", [[0, 0], [2, 0], [2, 1], [-1, 0], [3, 0], [0, 2]])
    def test_unknown(self, point):
        assert np.isnan(metrics.disparity_errors([point], [[0, 0]], self.disparity)).all()


class TestPose:
    def test_errors_are_the_angles(self):
        R, _ = cv2.Rodrigues(np.array([0, 0, np.deg2rad(30)]))
        T = np.eye(4)
        T[:3, 3] = [2, 0, 0]
        error = metrics.relative_pose_error(T, R, [np.cos(0.1), np.sin(0.1), 0])
        assert error == pytest.approx((30, np.rad2deg(0.1)))
        assert error.worst == pytest.approx(30)

    def test_the_sign_of_the_translation_is_free(self):
        T = np.eye(4)
        T[:3, 3] = [0, 0, 1]
        assert metrics.relative_pose_error(T, np.eye(3), [0, 0, -5]).translation == pytest.approx(0)
        assert metrics.relative_pose_error(T, np.eye(3), [1, 0, -1]).translation == pytest.approx(45)

    def test_translations_without_direction(self):
        T = np.eye(4)
        assert metrics.relative_pose_error(T, np.eye(3), [0, 0, 1]).translation == 0
        T[:3, 3] = [0.1, 0, 0]
        assert metrics.relative_pose_error(T, np.eye(3), [0, 0, 1]).translation == pytest.approx(90)
        assert metrics.relative_pose_error(T, np.eye(3), [0, 0, 0]).translation == np.inf

    @pytest.mark.parametrize("seed", range(3))
    def test_estimate_pose_of_exact_matches(self, seed):
        kpts0, kpts1, T = scene(seed)
        pose = metrics.estimate_pose(kpts0, kpts1, K0, K1)
        assert metrics.relative_pose_error(T, pose.R, pose.t).worst < 0.05
        assert pose.inliers.shape == (200,)
        assert pose.inliers.sum() > 150

    def test_estimate_pose_among_wrong_matches(self):
        kpts0, kpts1, T = scene(4, noise=0.2, wrong=60)
        pose = metrics.estimate_pose(kpts0, kpts1, K0, K1)
        assert metrics.relative_pose_error(T, pose.R, pose.t).worst < 3
        assert pose.inliers[60:].sum() > 90
        assert pose.inliers[:60].sum() < 10

    @pytest.mark.parametrize("points", [0, 4])
    def test_too_few_matches(self, points):
        kpts0, kpts1, _ = scene(points=points)
        assert metrics.estimate_pose(kpts0, kpts1, K0, K1) is None

    def test_all_matches_in_one_place(self):
        pose = metrics.estimate_pose(np.ones((9, 2)), np.ones((9, 2)), K0, K1)
        assert pose is None or pose.inliers.shape == (9,)


class TestEpipolar:
    def test_true_matches_have_no_distance_and_others_do(self):
        kpts0, kpts1, T = scene(wrong=50)
        distances = metrics.symmetric_epipolar_distance(kpts0, kpts1, metrics.essential_matrix(T), K0, K1)
        assert distances[50:].max() < 1e-20
        assert np.median(distances[:50]) > 1e-3

    def test_by_hand(self):
        # a camera that moved along x: lines are rows, and the distance in each image is the difference in y over f
        E = metrics.essential_matrix(np.c_[np.eye(3), [1, 0, 0]])
        K = np.diag([100.0, 100, 1])
        np.testing.assert_allclose(metrics.symmetric_epipolar_distance([[5, 10]], [[9, 13]], E, K, K), 2 * 0.03**2)
