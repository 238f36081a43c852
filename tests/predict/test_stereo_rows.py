"""Whether a pair is rectified, and by how much it is not."""

import numpy as np
import pytest
from PIL import Image

from quadtree_attention.predict.stereo_rows import check_rows, find_displacements


def walls(far=3, near=12, rows=0, height=180, width=300):
    """A near wall on the left of a far one, so many pixels of disparity; the right view shows all of it so many rows lower."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (70, 130, 3), dtype=np.uint8)).resize(
        (420, 240), Image.Resampling.BICUBIC
    )
    wall = np.asarray(image)
    top, edge = 30, width // 2

    def view(shift_far, shift_near, down):
        out = wall[top - down : top - down + height, 60 + shift_far : 60 + shift_far + width].copy()
        out[:, : edge - shift_near] = wall[::-1][top - down : top - down + height, 30 + shift_near : 30 + edge]
        return np.ascontiguousarray(out)

    return view(0, 0, 0), view(far, near, rows)


def test_moves_are_measured():
    found = find_displacements(*walls(rows=2))
    assert len(found.displacements) > 50
    near = found.points[:, 0] < 130
    assert np.median(found.displacements[near], 0) == pytest.approx([-12, 2], abs=0.2)
    assert np.median(found.displacements[found.points[:, 0] > 165], 0) == pytest.approx([-3, 2], abs=0.2)


def test_nothing_is_said_of_a_rectified_pair():
    assert check_rows(*walls()) is None
    assert check_rows(*walls(far=0, near=0)) is None


@pytest.mark.parametrize(
    ("rows", "words"), [(4, "4.0 rows below"), (8, "8.0 rows below"), (-16, "16.0 rows above"), (2, "2.0 rows below")]
)
def test_rows_that_are_off(rows, words):
    problem = check_rows(*walls(rows=rows))
    assert words in problem
    assert f"shift the right image {'up' if rows > 0 else 'down'}" in problem
    assert problem.count("\n") == 0


def test_amounts_are_in_pixels_of_the_files():
    assert "8.0 rows below" in check_rows(*walls(rows=4), 2.0)


def test_a_turned_view():
    left, right = walls()
    turned = np.asarray(Image.fromarray(right).rotate(4, Image.Resampling.BICUBIC, fillcolor=(128, 128, 128)))
    assert "rows of the two images do not correspond" in check_rows(left, turned)


def test_disparities_below_0():
    problem = check_rows(*walls(far=-8, near=12))
    assert "have a disparity below 0, down to -8 pixels" in problem
    assert "cut 8 columns from the left of the right image" in problem


def test_exchanged_views():
    left, right = walls()
    problem = check_rows(right, left)
    assert "are left and right exchanged?" in problem
    assert "further right" in problem


@pytest.mark.parametrize("size", [(32, 32), (40, 900), (900, 40)])
def test_what_tells_nothing(size):
    plain = np.full((*size, 3), 128, np.uint8)
    assert check_rows(plain, plain) is None
    stripes = np.broadcast_to(np.arange(size[1])[:, None] // 8 % 2 * np.uint8(200), (*size, 3)).copy()
    assert check_rows(stripes, stripes) is None
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 256, (2, *size, 3), dtype=np.uint8)
    assert check_rows(one, other) is None
