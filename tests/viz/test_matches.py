import numpy as np
import pytest

from quadtree_attention.predict.matching import Matches
from quadtree_attention.viz.drawing import BAR, GAP
from quadtree_attention.viz.matches import OUTLIER, draw_matches


def some_matches(count: int = 40) -> Matches:
    random = np.random.default_rng(0)
    points = random.uniform(10, 90, (count, 2)).astype(np.float32)
    return Matches(points, points + 3, random.uniform(0.2, 1, count).astype(np.float32))


def test_sizes_and_padding(photo):
    small = photo[:60, :100]
    picture = draw_matches(photo, small, some_matches(0))
    assert picture.dtype == np.uint8
    assert picture.shape == (120 + BAR, 640, 3)
    picture = draw_matches(np.zeros((300, 900, 3), np.uint8), photo, some_matches(0), max_side=600)
    assert picture.shape == (200 + BAR, 600 + GAP + 160, 3)


def test_a_line_leads_from_point_to_point(photo):
    image = np.zeros_like(photo)
    matches = Matches(np.float32([[20, 60]]), np.float32([[100, 60]]), np.float32([0.95]))
    picture = draw_matches(image, image, matches).astype(int)
    row = picture[60, 20 : 160 + GAP + 100].sum(-1)
    assert row.min() > 150
    assert picture[50, 20 : 160 + GAP + 100].max() < 30


def test_outliers_are_red_or_hidden(photo):
    image, matches = np.zeros_like(photo), some_matches()
    none = np.zeros(len(matches), bool)
    red = draw_matches(image, image, matches, none)[:120]
    inked = red[red.max(-1) > 60].astype(float)
    assert len(inked)
    direction = np.array(OUTLIER) / np.linalg.norm(OUTLIER)
    assert (inked @ direction / np.linalg.norm(inked, axis=-1)).min() > 0.95
    hidden = draw_matches(image, image, matches, none, outliers=False)[:120]
    assert hidden.max() < 30


def test_same_input_same_picture_and_limited_lines(photo):
    matches = some_matches(500)
    first, second = (draw_matches(photo, photo, matches, max_lines=20) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert (first != draw_matches(photo, photo, matches, max_lines=400)).any()


def test_wrong_length(photo):
    with pytest.raises(ValueError, match="one for each match"):
        draw_matches(photo, photo, some_matches(3), np.ones(4, bool))
