import numpy as np
import pytest
from PIL import Image

from quadtree_attention.predict.classification import Classification
from quadtree_attention.predict.matching import Matches
from quadtree_attention.viz.classification import draw_classifications
from quadtree_attention.viz.drawing import BAR, GAP, save_picture
from quadtree_attention.viz.matches import OUTLIER, confidence_colors, draw_matches


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


def test_colours_run_from_violet_to_yellow():
    low, high = confidence_colors(np.array([-1.0, 2.0]), 0, 1).astype(int)
    assert low[2] > low[1]
    assert high[0] > high[2]
    luma = confidence_colors(np.linspace(0, 1, 50), 0, 1) @ [0.299, 0.587, 0.114]
    assert (np.diff(luma) > -1).all()


def test_wrong_length(photo):
    with pytest.raises(ValueError, match="one for each match"):
        draw_matches(photo, photo, some_matches(3), np.ones(4, bool))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_save(tmp_path, photo, suffix):
    save_picture(photo, tmp_path / f"p{suffix}")
    with Image.open(tmp_path / f"p{suffix}") as image:
        assert image.size == (160, 120)
    assert [path.name for path in tmp_path.iterdir()] == [f"p{suffix}"]


def test_contact_sheet(photo):
    sure = Classification(
        ("a class with a name that is much too long for its place", "b"), np.float32([0.9, 0.1]), np.arange(2)
    )
    sheet = draw_classifications([photo, photo[:, :60], photo[:30]], [sure] * 3, tile=120)
    assert sheet.dtype == np.uint8
    assert sheet.shape[1] == 2 * (120 + GAP) + GAP
    bars = sheet[GAP + 120 + 6 :, GAP : GAP + 56].max(-1) > 100
    first = bars[6].sum()
    assert first == round(56 * 0.9) + 1
    assert not sheet[-40:, 140:].max() > 60  # nothing in the fourth place
    with pytest.raises(ValueError, match="got 1 images and 2 results"):
        draw_classifications([photo], [sure, sure])
