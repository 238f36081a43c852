import numpy as np
import pytest

from quadtree_attention import Matcher, StereoMatcher
from quadtree_attention.predict.attention import image_attention
from quadtree_attention.viz.attention import LEVELS, draw_attention
from quadtree_attention.viz.drawing import GAP


@pytest.fixture(scope="module")
def seen(photo):
    return image_attention(Matcher.from_pretrained("tiny"), photo, photo[:, :120])


def test_a_pair_is_drawn(photo, seen):
    found = seen.at(80, 60, head=1)
    first, second = (draw_attention(photo, photo[:, :120], found, width=900) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.shape[1] == 900
    assert first.dtype == np.uint8
    for color in LEVELS[:3]:  # in the titles, and of the patches around the point
        assert (first == color).all(-1).sum() > 50
    assert (draw_attention(photo, photo[:, :120], seen.at(20, 100, head=1), width=900) != first).any()


def test_only_what_was_looked_at_has_colours(photo, seen):
    """The last panel of the last level: grey but for the patches."""
    gray = np.repeat(photo[..., :1], 3, -1)
    found = seen.at(80, 60, head=1)
    picture = draw_attention(gray, gray[:, :120], found, width=900).astype(int)
    height = round((900 - 4 * GAP) / 3)  # of the panels of levels, whose images are square here
    panel = picture[-height - 60 : -80, 900 - GAP - height + 5 : 900 - GAP - 5]
    colored = (np.ptp(panel, -1) > 12).mean()
    share = sum((box[2] - box[0]) * (box[3] - box[1]) for box in found.levels[-1].boxes) / (120 * 120)
    assert 0.3 * share < colored < 1.5 * share


def test_one_photograph_and_a_row(photo):
    one = draw_attention(photo, None, image_attention(Matcher.from_pretrained("tiny"), photo).at(10, 10), width=700)
    assert one.shape[1] == 700
    stereo = image_attention(StereoMatcher.from_pretrained("tiny"), photo, photo)
    row = draw_attention(photo, photo, stereo.at(100, 60, layer=2), width=700)
    assert row.shape[1] == 700


def test_a_missing_second_image_is_told(photo, seen):
    with pytest.raises(ValueError, match="second image is missing"):
        draw_attention(photo, None, seen.at(3, 3))
