import cv2
import numpy as np
import pytest
from PIL import Image

from quadtree_attention.evaluation.synthetic import SyntheticHomographies


class TestSynthetic:
    @pytest.fixture
    def photos(self, tmp_path, photo):
        Image.fromarray(photo).save(tmp_path / "p.png")
        Image.fromarray(photo[:, ::-1]).save(tmp_path / "q.png")
        return tmp_path

    def test_same_seed_same_pairs(self, photos):
        first, again, other = (list(SyntheticHomographies(photos, 3, seed)) for seed in (1, 1, 2))
        assert [pair.name for pair in first] == ["0000 p.png", "0001 q.png", "0002 p.png"]
        for a, b, c in zip(first, again, other, strict=True):
            np.testing.assert_array_equal(a.image1, b.image1)
            np.testing.assert_array_equal(a.homography, b.homography)
            assert not np.allclose(a.homography, c.homography)

    def test_the_homography_is_that_of_the_images(self, photos):
        for pair in SyntheticHomographies(photos, 6):
            height, width = pair.image0.shape[:2]
            warped = cv2.warpPerspective(pair.image0, pair.homography, (width, height))
            seen = cv2.warpPerspective(np.ones((height, width), np.uint8), pair.homography, (width, height)) > 0
            likeness = np.corrcoef(warped[seen].ravel(), pair.image1[seen].ravel())[0, 1]
            shifted = np.corrcoef(np.roll(warped, 9, 1)[seen].ravel(), pair.image1[seen].ravel())[0, 1]
            assert likeness > 0.9
            assert likeness > shifted

    def test_views_lie_inside_the_photograph(self, photos):
        for pair in SyntheticHomographies(photos, 8):
            height, width = pair.image0.shape[:2]
            corners = np.array([[[0, 0]], [[width - 1, 0]], [[width - 1, height - 1]], [[0, height - 1]]], np.float64)
            view = pair.homography if int(pair.name[:4]) % 2 else np.linalg.inv(pair.homography)
            inside = cv2.perspectiveTransform(corners, view).reshape(-1, 2)
            assert (inside > -0.01).all()
            assert (inside < [width - 0.99, height - 0.99]).all()
