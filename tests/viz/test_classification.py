import numpy as np
import pytest

from quadtree_attention.predict.classification import Classification
from quadtree_attention.viz.classification import draw_classifications
from quadtree_attention.viz.drawing import GAP


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
