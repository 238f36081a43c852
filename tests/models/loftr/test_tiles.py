"""Matches found a tile at a time against the definition, which has the matrix of all confidences."""

import pytest
import torch

from quadtree_attention.ops import matching


def pair(batch=2):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, 1, 48, 64, generator=generator), torch.rand(batch, 1, 40, 56, generator=generator)


def masks():
    mask0, mask1 = torch.zeros(2, 6, 8, dtype=torch.bool), torch.zeros(2, 5, 7, dtype=torch.bool)
    mask0[0], mask0[1, :4, :5], mask1[0, :, 1:], mask1[1, 1:] = True, True, True, True
    return mask0, mask1


OPTIONS = [
    {"threshold": 0.0},
    {"threshold": 0.01},
    {"threshold": 0.02},
    {"threshold": 0.2, "border": 1},
    {"threshold": 0.0, "matching": "optimal_transport"},
    {"threshold": 0.001, "matching": "optimal_transport", "prefilter": True, "sinkhorn_iterations": 1},
    {"threshold": 0.005, "matching": "optimal_transport", "border": 1},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("tile", [1, 500, 2**22])
def test_matches_are_those_of_the_matrix(small, monkeypatch, options, masked, tile):
    monkeypatch.setitem(matching.TILE, "cpu", tile)  # of one row, of some, and of all
    model, images = small(**options), pair()
    if (
        "matching" in options
    ):  # two confidences of a column differ by four millionths, which float32 cannot tell for certain
        model, images = model.double(), [image.double() for image in images]
    features = model.encode(*images, *(masks() if masked else ()))
    # Features of an untrained network are too much alike for any pair to stand out.
    factor = 25 if "matching" in options else 8
    spread = [(x - x.mean((1, 2), keepdim=True)) * factor for x in (features.coarse0, features.coarse1)]
    features = type(features)(*spread, features.fine0, features.fine1, features.mask0, features.mask1)
    with torch.no_grad():
        b, i, j, confidence = model.select(model.confidence(features), features)
        found = model.matches(features)
    assert len(b) > 2
    assert torch.equal(found["batch_indexes"], b)
    assert torch.equal(found["keypoints0"].long(), torch.stack([i % 8, i // 8], 1) * 8)
    torch.testing.assert_close(found["confidence"], confidence, rtol=2e-5, atol=1e-7)
    offset = model.refine(features, b, i, j)[:, :2] * 4
    torch.testing.assert_close(found["keypoints1"], torch.stack([j % 7, j // 7], 1) * 8 + offset)


@pytest.mark.parametrize("threshold", [0.0, 1 / 64])
def test_equal_cells_match_as_published(small, threshold):
    """Cells of a flat image all tie: the first one away from the border is taken."""
    model = small(threshold=threshold, border=1)
    features = model.encode(torch.full((1, 1, 32, 32), 0.5), torch.full((1, 1, 32, 32), 0.5))
    flat = [torch.ones_like(x) for x in (features.coarse0, features.coarse1)]
    features = type(features)(*flat, features.fine0, features.fine1)
    with torch.no_grad():
        expected = model.select(model.confidence(features), features)
        found = model.matches(features)
    assert torch.equal(found["batch_indexes"], expected[0])
    assert len(expected[0]) == (4 if threshold == 0 else 0)
