import numpy as np
import pytest

from quadtree_attention.predict.segmentation import Segmentation, class_colors
from quadtree_attention.viz.drawing import BACKGROUND
from quadtree_attention.viz.segmentation import draw_segmentation, tinted

NAMES = ("background", "cat", "dog")


def segmentation(labels, names=NAMES):
    return Segmentation(labels, np.ones(labels.shape, np.float32), tuple(names))


def test_colors_lie_over_their_pixels():
    image, labels = np.full((40, 60, 3), 100, np.uint8), np.zeros((40, 60), np.uint8)
    labels[:, 30:] = 2
    picture = tinted(image, labels, NAMES, 0.5)
    assert (picture[:, :30] == 100).all()  # background has no colour
    assert (picture[:, 30] == 255).all()  # the outline
    want = np.rint(50 + class_colors(NAMES)[2] / 2)
    assert np.abs(picture[5, 45] - want).max() <= 1
    labels[:] = 255  # no class
    assert (tinted(image, labels, NAMES) == 100).all()


def test_a_legend_below_with_each_class_once():
    image, labels = np.full((80, 300, 3), 100, np.uint8), np.zeros((80, 300), np.uint8)
    labels[:, 200:] = 1
    sheet = draw_segmentation(image, segmentation(labels))
    assert sheet.shape[1:] == (300, 3)
    legend = sheet[80:]
    assert (legend == class_colors(NAMES)[1]).all(-1).sum() > 50  # the class's box
    assert not (legend == class_colors(NAMES)[2]).all(-1).any()  # not there, not listed
    assert (legend[-1] == BACKGROUND).all()
    many = tuple(f"class {n}" for n in range(40))
    crowded = draw_segmentation(image, segmentation(np.arange(24000).reshape(80, 300).astype(np.uint8) % 40, many))
    assert crowded.shape[0] > sheet.shape[0]
    assert (crowded[:, -3:] == BACKGROUND).all(-1)[80:].all()  # nothing runs off


def test_large_images_are_shrunk_and_small_ones_framed():
    assert (
        draw_segmentation(
            np.zeros((300, 600, 3), np.uint8), segmentation(np.zeros((300, 600), np.uint8)), max_side=400
        ).shape[1]
        == 400
    )
    assert draw_segmentation(np.zeros((5, 7, 3), np.uint8), segmentation(np.zeros((5, 7), np.uint8))).shape[1] == 240
    with pytest.raises(ValueError, match="expected one size"):
        draw_segmentation(np.zeros((5, 7, 3), np.uint8), segmentation(np.zeros((7, 5), np.uint8)))
