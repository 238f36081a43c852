"""Positions and attention along rows, against their definitions."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from quadtree_attention.models.sttr import STTRConfig
from quadtree_attention.models.sttr.attention import RowAttention, RowProjections
from quadtree_attention.models.sttr.position import by_distance, level_places, relative_sines, rotate

SMALL = STTRConfig(dim=16, num_heads=2, levels=3, topk=(2, 2))


def test_rotated_products_depend_on_the_distance_alone():
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    places = torch.arange(6, dtype=torch.float64)
    queries, keys = (rotate(x.expand(1, 6, 1, 8), places)[0, :, 0] for x in (query, key))
    products = queries @ keys.T
    for shift in range(-5, 6):
        diagonal = products.diagonal(shift)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    assert products[0].std() > 1e-3
    assert torch.equal(queries[:, 4:], query[0, 0].expand(6, 8)[:, 4:])  # half of the channels know no place


def test_numbers_are_those_of_the_definition_rounded_once():
    """Half an ulp of a number up to 1 is 2^-25; float64's own errors are far below 1e-12. So they are the same on every machine."""
    half_ulp = 2.0**-25 + 1e-12
    places = np.array([0.0, 1.5, 400, 511])
    angle = places[:, None] * 1000.0 ** -(np.arange(2) / 2)  # half of 8 channels: two pairs
    east = torch.tensor([1.0, 1, 0, 0, 0, 0, 0, 0]).expand(1, 4, 1, 8)
    rotated = rotate(east, torch.from_numpy(places))[0, :, 0].double().numpy()
    np.testing.assert_allclose(rotated[:, :2], np.cos(angle), rtol=0, atol=half_ulp)
    np.testing.assert_allclose(rotated[:, 2:4], np.sin(angle), rtol=0, atol=half_ulp)

    distance = np.arange(399, -400, -1)[:, None] * 10000.0 ** (-2 * np.arange(8) / 16)
    got = relative_sines(400, 16, torch.zeros(())).double().numpy()
    np.testing.assert_allclose(got[:, ::2], np.sin(distance), rtol=0, atol=half_ulp)
    np.testing.assert_allclose(got[:, 1::2], np.cos(distance), rtol=0, atol=half_ulp)


def test_parents_stand_amid_their_children():
    coarse, middle, fine = level_places(5, 3, torch.device("cpu"))
    assert fine.tolist() == [0, 1, 2, 3, 4]
    assert middle.tolist() == [0.5, 2.5, 4]
    assert coarse.tolist() == [1.5, 4]


@pytest.mark.parametrize("width", [1, 2, 5])
def test_by_distance(width):
    table = torch.arange(2 * width - 1.0).expand(3, width, -1)  # entry n is for distance width - 1 - n
    got = by_distance(table)
    i, j = torch.meshgrid(torch.arange(width), torch.arange(width), indexing="ij")
    assert torch.equal(got, (width - 1 - (i - j)).float().expand(3, -1, -1))


@pytest.mark.parametrize("sign", [1, -1])
def test_relative_scores_are_those_of_the_paper(sign):
    torch.manual_seed(0)
    layer = RowProjections(replace(SMALL, attention="full", position="relative")).double()
    width = 5
    query, key = torch.randn(2, 1, width, 2, 8, dtype=torch.float64)
    got = layer.scores(query, key, sign)
    table = relative_sines(width, 16, query)
    for i in range(width):
        for j in range(width):
            sine = table[width - 1 - sign * (i - j)]
            of_key, of_query = layer.heads(layer.k_proj(sine)), layer.heads(layer.q_proj(sine))
            want = (query[0, i] * key[0, j] + query[0, i] * of_key + of_query * key[0, j]).sum(-1) / 8**0.5
            torch.testing.assert_close(got[0, :, i, j], want)


@pytest.mark.parametrize("variant", ["a", "b"])
def test_quadtree_with_all_candidates_and_one_level_is_full(variant):
    """With one level the tree is a full attention, rotary positions and all."""
    torch.manual_seed(0)
    full = RowAttention(replace(SMALL, attention="full"))
    torch.nn.init.normal_(full.proj.weight)
    tree = RowAttention(replace(SMALL, attention=f"quadtree_{variant}", levels=1, topk=()))
    tree.load_state_dict(full.state_dict(), strict=False)
    x, context = torch.randn(2, 3, 7, 16)
    torch.testing.assert_close(tree(x, context), full(x, context), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(tree(x, context, -1), full(x, context, -1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("attention", "position"),
    [
        ("quadtree_a", "rotary"),
        ("quadtree_b", "rotary"),
        ("quadtree_b", "none"),
        ("full", "rotary"),
        ("full", "relative"),
    ],
)
def test_mirrored_rows_with_mirrored_distances_give_mirrored_messages(attention, position):
    """What makes one module serve both directions: from right to left is from left to right in a mirror."""
    torch.manual_seed(0)
    layer = RowAttention(replace(SMALL, attention=attention, position=position))
    torch.nn.init.normal_(layer.proj.weight)
    x, context = torch.randn(2, 2, 8, 16)
    torch.testing.assert_close(layer(x.flip(1), context.flip(1), -1).flip(1), layer(x, context), atol=1e-5, rtol=1e-4)
    if position != "none":
        assert not torch.allclose(layer(x, context, -1), layer(x, context), atol=1e-3)


def test_a_new_layer_passes_features_on():
    layer = RowAttention(SMALL)
    assert not layer(torch.randn(1, 6, 16), torch.randn(1, 6, 16)).any()
