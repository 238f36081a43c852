import numpy as np
import pytest
from PIL import Image

from quadtree_attention.viz.drawing import confidence_colors, save_picture


def test_colours_run_from_violet_to_yellow():
    low, high = confidence_colors(np.array([-1.0, 2.0]), 0, 1).astype(int)
    assert low[2] > low[1]
    assert high[0] > high[2]
    luma = confidence_colors(np.linspace(0, 1, 50), 0, 1) @ [0.299, 0.587, 0.114]
    assert (np.diff(luma) > -1).all()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_save(tmp_path, photo, suffix):
    save_picture(photo, tmp_path / f"p{suffix}")
    with Image.open(tmp_path / f"p{suffix}") as image:
        assert image.size == (160, 120)
    assert [path.name for path in tmp_path.iterdir()] == [f"p{suffix}"]
