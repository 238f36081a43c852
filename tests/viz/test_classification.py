import numpy as np
import pytest

from quadtree_attention.predict.classification import Classification
from quadtree_attention.viz.classification import draw_classifications
from quadtree_attention.viz.drawing import BACKGROUND

GREY = np.full((90, 120, 3), 128, np.uint8)


def classified(*probabilities, label="dress"):
    names = tuple(f"{label} {n}" for n in range(len(probabilities)))
    return Classification(names, np.float32(probabilities), np.arange(len(probabilities)))


def bars(sheet):
    """Lengths of the bars, from the top: in a sheet of grey images they are all that has a colour."""
    lengths = (np.ptp(sheet.astype(int), axis=-1) > 40).sum(1)
    starts = np.flatnonzero((lengths > 0) & (np.roll(lengths, 1) == 0))
    return lengths[starts]


def test_bars_are_as_long_as_probabilities_are_large():
    lengths = bars(draw_classifications([GREY], [classified(1.0, 0.5, 0.25)], tile=120))
    assert len(lengths) == 3
    assert lengths[0] > 30
    np.testing.assert_allclose(lengths / lengths[0], [1, 0.5, 0.25], atol=1.5 / lengths[0])  # whole pixels


def test_every_image_is_on_the_sheet_once():
    sheet = draw_classifications([GREY, GREY, GREY[:30]], [classified(1.0)] * 3, tile=120)
    assert sheet.dtype == np.uint8
    assert (sheet == 128).all(-1).sum() == 2 * GREY[..., 0].size + GREY[:30, :, 0].size
    right, below = sheet[:, sheet.shape[1] // 2 :], sheet.shape[0] // 2
    assert (right[:below] == 128).any()
    assert (right[below:] == BACKGROUND).all()  # two columns: nothing in the fourth place


def test_long_names_stay_in_their_column():
    long = classified(1.0, label="a class with a name that is much too long")
    of_one = draw_classifications([GREY], [long], tile=120)
    margin = (of_one.shape[1] - 120) // 2
    assert (of_one[:, -margin:] == BACKGROUND).all()


def test_as_many_results_as_images():
    with pytest.raises(ValueError, match="got 1 images and 2 results"):
        draw_classifications([GREY], [classified(1.0)] * 2)
