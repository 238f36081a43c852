import numpy as np
import pytest

from quadtree_attention import Matches
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


def test_top_draws_the_surest(photo):
    image, matches = np.zeros_like(photo), some_matches(40)
    surest = np.argsort(-matches.confidence)[:5]
    five = Matches(matches.keypoints0[surest], matches.keypoints1[surest], matches.confidence[surest])
    ink = [
        (draw_matches(image, image, one, top=top)[:120].max(-1) > 60).sum() for one, top in ((matches, 5), (five, None))
    ]
    assert ink[0] == pytest.approx(ink[1], rel=0.05)
    assert ink[0] < 0.5 * (draw_matches(image, image, matches)[:120].max(-1) > 60).sum()


def test_lines_thin_or_none(photo):
    image = np.zeros((400, 500, 3), np.uint8)
    large = np.zeros((1600, 2000, 3), np.uint8)
    matches = Matches(np.float32([[20, 60]]), np.float32([[400, 300]]), np.float32([0.95]))
    between = slice(480, 520)  # around the gap, where no dot is
    assert not (draw_matches(image, image, matches, lines="none")[:400, between].max(-1) > 60).any()
    inks = [
        draw_matches(large, large, matches, lines=lines)[:1600, 1000:1300].astype(int).sum()
        for lines in ("thin", "normal")
    ]
    assert 0 < inks[0] < 0.7 * inks[1]


def test_layouts_and_labels(photo):
    above = draw_matches(photo, photo[:60], some_matches(3), layout="above")
    assert above.shape == (120 + GAP + 60 + BAR, 640, 3)
    plain, named = (draw_matches(photo, photo, some_matches(0), labels=labels) for labels in (None, ("a.png", "b.png")))
    for left in (0, 160 + GAP):
        assert (plain[:28, left : left + 60] != named[:28, left : left + 60]).any()
    np.testing.assert_array_equal(plain[40:], named[40:])


@pytest.mark.parametrize("options", [dict(lines="thick"), dict(layout="left"), dict(top=0)])
def test_unknown_options(photo, options):
    with pytest.raises(ValueError, match="expected"):
        draw_matches(photo, photo, some_matches(3), **options)
