"""Paths of attention: what they add up to is what the operator gives, and nothing of it is left behind."""

import pytest
import torch
from torch import nn

from quadtree_attention import QuadtreeAttention, quadtree_attention, token_pyramid
from quadtree_attention.models.sttr import STTR, STTR_PRESETS
from quadtree_attention.nn import FullAttention, record_attention

GRIDS = [((13, 10), (9, 15)), ((21,), (18,)), ((5, 6, 7), (4, 5, 6)), ((8, 16), (16, 8))]


class Network(nn.Module):
    """Somebody's network: two attention layers, the second of them called twice."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.first = QuadtreeAttention(12, 3, levels=3, topk=(3, 2), **options)
        self.blocks = nn.ModuleList([nn.Identity(), QuadtreeAttention(12, 2, levels=2, topk=2, **options)])

    def forward(self, x, context):
        x = self.first(x, context)
        return self.blocks[1](self.blocks[1](x))


def values_of(module, context):
    return module.heads(module.v_proj(context))


@pytest.mark.parametrize(("grid", "key_grid"), GRIDS)
@pytest.mark.parametrize("variant", ["a", "b"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_path_adds_up_to_what_the_operator_gives(grid, key_grid, variant, masked):
    """Of every head: its map over the finest keys, times their values, is the operator's result for that query."""
    torch.manual_seed(0)
    module = QuadtreeAttention(12, 3, levels=3, topk=(3, 2), variant=variant)
    nn.init.normal_(module.q_proj.weight)  # peaked scores
    nn.init.normal_(module.k_proj.weight)
    nn.init.eye_(module.proj.weight)
    x, context = torch.randn(2, *grid, 12), torch.randn(2, *key_grid, 12)
    mask = torch.rand(2, *key_grid) > 0.3 if masked else None
    with torch.no_grad(), record_attention(module) as calls:
        out = module(x, context, context_mask=mask)
    (call,) = calls
    assert (call.module, call.number, call.query_grid, call.key_grid) == ("", 0, grid, key_grid)
    value = values_of(module, context)
    for cell in (tuple(0 for _ in grid), tuple(size - 1 for size in grid), tuple(size // 2 for size in grid)):
        path = call.path(cell, batch=1)
        for head in range(3):
            weights = path.attention_map(head)
            got = torch.einsum("n,nd->d", weights.flatten(), value[1].flatten(0, -3)[:, head])
            want = out[1][cell][4 * head : 4 * head + 4]
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(path.attention_map().sum(), torch.tensor(1.0))
        torch.testing.assert_close(
            path.attention_map(), torch.stack([path.attention_map(head) for head in range(3)]).mean(0)
        )


def test_the_levels_of_a_path():
    """Kept keys are the operator's, candidates are the children of those kept above, and the best of them are kept."""
    torch.manual_seed(1)
    module = QuadtreeAttention(12, 3, levels=3, topk=(3, 2))
    nn.init.normal_(module.q_proj.weight)
    nn.init.normal_(module.k_proj.weight)
    x, context = torch.randn(1, 13, 10, 12), torch.randn(1, 9, 15, 12)
    with torch.no_grad(), record_attention(module) as calls:
        module(x, context)
        _, kept = quadtree_attention(
            module.heads(module.q_proj(x)),
            module.heads(module.k_proj(context)),
            values_of(module, context),
            levels=3,
            topk=(3, 2),
            return_candidates=True,
        )
    path = calls[0].path((7, 9))
    assert [level.query for level in path.levels] == [(1, 2), (3, 4), (7, 9)]
    assert [level.key_grid for level in path.levels] == [(3, 4), (5, 8), (9, 15)]
    for depth, level in enumerate(path.levels):
        for head in range(3):
            there = level.candidates[head] >= 0
            if depth == 0:
                assert level.candidates[head].tolist() == list(range(12))
            else:
                coarse = path.levels[depth - 1]
                looked = {
                    (int(n) // level.key_grid[1], int(n) % level.key_grid[1]) for n in level.candidates[head][there]
                }
                above = coarse.candidates[head][coarse.kept[head]].tolist()
                width = coarse.key_grid[1]
                assert looked == {
                    (2 * (n // width) + i, 2 * (n % width) + j)
                    for n in above
                    for i in (0, 1)
                    for j in (0, 1)
                    if 2 * (n // width) + i < level.key_grid[0] and 2 * (n % width) + j < level.key_grid[1]
                }
            assert level.scores[head].sum() == pytest.approx(1)
            if depth < 2:
                mine = level.candidates[head][level.kept[head]].tolist()
                assert set(mine) == set(kept[depth][0][level.query][head].tolist())
                assert level.scores[head][level.kept[head]].min() >= level.scores[head][~level.kept[head]].max()
        assert level.score_map(0).isnan().sum() == (
            level.score_map(0).numel() - len(set(level.candidates[0].tolist()) - {-1})
        )
        kept_by_all = level.kept_map()
        assert kept_by_all.max() <= 1.0001
        assert kept_by_all.sum() * 3 == pytest.approx(int(level.kept.sum()), abs=1e-4)


def test_costs_are_counted():
    """By hand: 4x4 on 4x4 tokens, two levels, one head, K = 2: 4 * 4 scores, then 16 queries with 8 candidates each."""
    module = QuadtreeAttention(4, 1, levels=2, topk=2)
    with record_attention(module) as calls:
        module(torch.randn(1, 4, 4, 4))
    assert calls[0].cost() == (4 * 4 + 16 * 8, 16 * 16)
    path = calls[0].path((0, 3))
    assert (path.computed, path.dense) == (4 + 8, 16)


def test_costs_at_ragged_edges_are_those_of_the_paths():
    torch.manual_seed(0)
    module = QuadtreeAttention(8, 2, levels=3, topk=(3, 2))
    with record_attention(module) as calls:
        module(torch.randn(1, 7, 5, 8), torch.randn(1, 6, 9, 8))
    call = calls[0]
    paths = [call.path((i, j)) for i in range(7) for j in range(5)]
    total = 0.0
    for depth in range(3):
        of_query = {path.levels[depth].query: path.levels[depth] for path in paths}
        total += sum(int((level.candidates >= 0).sum()) for level in of_query.values())
    assert call.cost() == (int(total), 2 * 35 * 54)


def test_networks_of_others():
    network, x = Network(), torch.randn(1, 9, 8, 12)
    plain = network(x, x.flip(1))
    with record_attention(network) as calls:
        torch.testing.assert_close(network(x, x.flip(1)), plain)
    assert [(call.module, call.number) for call in calls] == [("first", 0), ("blocks.1", 0), ("blocks.1", 1)]
    assert all(not tensor.requires_grad for call in calls for tensor in (*call.queries, *call.keys))
    network(x, x)
    assert len(calls) == 3  # nothing is recorded after the block
    with record_attention(network, ["first"]) as calls:
        network(x, x).sum().backward()
    assert [call.module for call in calls] == ["first"]
    assert network.first.q_proj.weight.grad is not None


def test_recording_ends_with_an_error():
    network = Network()
    with pytest.raises(RuntimeError, match="made up"), record_attention(network):
        raise RuntimeError("made up")
    with record_attention(network) as calls:
        network(torch.randn(1, 8, 8, 12), torch.randn(1, 8, 8, 12))
    assert len(calls) == 3


def test_rows_of_a_stereo_network():
    torch.manual_seed(0)
    network = STTR(STTR_PRESETS["tiny"]).eval()
    with torch.no_grad(), record_attention(network) as calls:
        network(torch.rand(1, 3, 48, 96), torch.rand(1, 3, 48, 96))
    assert {call.module for call in calls} == {f"transformer.layers.{n}.attn" for n in range(4)}
    assert calls[0].query_grid == (24,)
    path = calls[0].path((20,), batch=3)
    assert path.attention_map().sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: record_attention(nn.Linear(2, 2)), "Linear has no quadtree attention"),
        (lambda: record_attention(FullAttention(8, 2)), "FullAttention has no quadtree attention"),
        (lambda: record_attention(Network(), ["second"]), "'second' is no quadtree attention of this network"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message), call():
        pass


def test_cells_that_are_not_there():
    module = QuadtreeAttention(8, 2, levels=2, topk=2)
    with record_attention(module) as calls:
        module(torch.randn(2, 6, 5, 8))
        with pytest.raises(ValueError, match="recorded already"), record_attention(module):
            pass
    for query, batch in (((6, 0), 0), ((0, -1), 0), ((0,), 0), ((0, 0), 2)):
        with pytest.raises(ValueError, match="expected"):
            calls[0].path(query, batch=batch)


def test_pyramids_are_those_of_the_operator():
    module = QuadtreeAttention(8, 2, levels=3, topk=2)
    x = torch.randn(1, 9, 7, 8)
    with record_attention(module) as calls:
        module(x)
    for got, want in zip(calls[0].queries, token_pyramid(module.heads(module.q_proj(x)), 3), strict=True):
        torch.testing.assert_close(got, want)
