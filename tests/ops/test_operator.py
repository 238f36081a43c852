"""The operator against brute force, against the original's numbers, and on every form of input it takes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quadtree_attention import quadtree_attention, token_pyramid

from ..golden import load

BACKENDS = ["reference", "cpu"]


def brute_force(query, key, value, levels, topk, variant, weights, query_mask=None, key_mask=None):
    """The definition with loops over tokens, one head and batch entry at a time, on coordinates instead of tree order."""
    out = torch.zeros(*query.shape[:-1], value.shape[-1], dtype=query.dtype)
    for b in range(query.shape[0]):
        for h in range(query.shape[-2]):
            q_mask = query_mask[b] if query_mask is not None else torch.ones(query.shape[1:-2], dtype=torch.bool)
            k_mask = key_mask[b] if key_mask is not None else torch.ones(key.shape[1:-2], dtype=torch.bool)
            q = _pyramid(query[b, ..., h, :], q_mask, levels)
            k = _pyramid(key[b, ..., h, :], k_mask, levels)
            v = _pyramid(value[b, ..., h, :], k_mask, levels)
            for cell in np.ndindex(*query.shape[1:-2]):
                if q_mask[cell]:
                    out[(b, *cell, h)] = _one_query(cell, q, k, v, levels, topk, variant, weights)
    return out


def _pyramid(x, mask, levels):
    """[{cell: mean of its valid children}, ...], coarse to fine."""
    pyramid = [{cell: x[cell] for cell in np.ndindex(*mask.shape) if mask[cell]}]
    for _ in range(levels - 1):
        groups = {}
        for cell, token in pyramid[0].items():
            groups.setdefault(tuple(c // 2 for c in cell), []).append(token)
        pyramid.insert(0, {cell: torch.stack(tokens).mean(0) for cell, tokens in groups.items()})
    return pyramid


def _one_query(cell, q, k, v, levels, topk, variant, weights):
    total = 0
    kept = None  # [(cell, share)]
    for level in range(levels):
        token = q[level][tuple(c >> (levels - 1 - level) for c in cell)]
        groups = [(sorted(k[level]), 1.0)] if kept is None else []
        for parent, share in kept or []:
            children = [
                tuple(2 * p + bit for p, bit in zip(parent, bits, strict=True))
                for bits in np.ndindex(*[2] * len(parent))
            ]
            groups.append(([c for c in children if c in k[level]], share))
        if variant == "b":
            groups = [([c for cells, _ in groups for c in cells], 1.0)]
        scored = []
        for cells, share in groups:
            if cells:
                logits = torch.stack([token @ k[level][c] for c in cells]) / math.sqrt(len(token))
                scored += list(zip(cells, logits.softmax(0) * share, strict=True))
        best = (
            sorted(range(len(scored)), key=lambda i: -float(scored[i][1]))[: topk[level]] if level < levels - 1 else []
        )
        kept = [scored[i] for i in best]
        parts = [p * v[level][c] for i, (c, p) in enumerate(scored) if variant == "b" or i not in best]
        if parts:
            total = total + sum(parts) * (weights[level] if variant == "b" else 1)
    return total


def random_inputs(grid, key_grid, heads=2, dim=4, dim_v=3, batch=2, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    make = lambda g, d: torch.randn(batch, *g, heads, d, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    return make(grid, dim), make(key_grid, dim), make(key_grid, dim_v)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", ["a", "b"])
@pytest.mark.parametrize(
    ("grid", "key_grid", "levels", "topk"),
    [
        ((8, 8), (8, 8), 2, (3,)),
        ((7, 5), (7, 5), 3, (2, 3)),
        ((4, 6), (9, 3), 2, (4,)),
        ((13,), (9,), 3, (2, 2)),
        ((3, 4, 5), (4, 3, 2), 2, (2,)),
        ((1, 1), (1, 1), 3, (5, 5)),
        ((2, 3), (5, 4), 1, ()),
        ((5, 6), (5, 6), 2, (1000,)),
    ],
)
def test_equals_brute_force(backend, variant, grid, key_grid, levels, topk):
    query, key, value = random_inputs(grid, key_grid)
    weights = torch.linspace(0.5, 1.5, levels, dtype=torch.float64) if variant == "b" else None
    out = quadtree_attention(
        query, key, value, levels=levels, topk=topk, variant=variant, level_weights=weights, backend=backend
    )
    torch.testing.assert_close(out, brute_force(query, key, value, levels, topk, variant, weights), rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", ["a", "b"])
def test_masks_equal_brute_force(backend, variant):
    query, key, value = random_inputs((6, 5), (5, 7))
    generator = torch.Generator().manual_seed(3)
    query_mask = torch.rand(2, 6, 5, generator=generator) > 0.4
    key_mask = torch.rand(2, 5, 7, generator=generator) > 0.6
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    options = dict(query_mask=query_mask, key_mask=key_mask)
    out = quadtree_attention(
        query,
        key,
        value,
        levels=2,
        topk=3,
        variant=variant,
        level_weights=weights if variant == "b" else None,
        backend=backend,
        **options,
    )
    torch.testing.assert_close(
        out, brute_force(query, key, value, 2, (3,), variant, weights, **options), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", ["a", "b"])
def test_nothing_to_attend_gives_zeros(backend, variant):
    query, key, value = (x.requires_grad_() for x in random_inputs((4, 4), (4, 4)))
    key_mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    key_mask[1, 0, 0] = True
    out = quadtree_attention(query, key, value, levels=2, topk=2, variant=variant, key_mask=key_mask, backend=backend)
    assert (out[0] == 0).all()
    if variant == "a":  # all of the score rests on the one key
        torch.testing.assert_close(out[1], value[1, :1, :1].expand(4, 4, -1, -1))
    out.square().sum().backward()
    assert all(x.grad.isfinite().all() for x in (query, key, value))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", ["a", "b"])
def test_padding_changes_nothing(backend, variant):
    """A padded batch gives for each image what the image alone gives."""
    query, key, value = random_inputs((5, 7), (5, 7))
    alone = quadtree_attention(query, key, value, levels=3, topk=2, variant=variant, backend=backend)
    mask = torch.zeros(2, 12, 8, dtype=torch.bool)
    mask[:, :5, :7] = True
    padded = [torch.full((2, 12, 8, *x.shape[3:]), 7.0, dtype=x.dtype) for x in (query, key, value)]
    for big, small in zip(padded, (query, key, value), strict=True):
        big[:, :5, :7] = small
    out = quadtree_attention(
        *padded, levels=3, topk=2, variant=variant, query_mask=mask, key_mask=mask, backend=backend
    )
    torch.testing.assert_close(out[:, :5, :7], alone, rtol=0, atol=1e-12)
    assert (out[~mask] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("variant", ["a", "b"])
@pytest.mark.parametrize(
    ("grid", "key_grid", "masked"), [((5, 4), (3, 6), False), ((5, 4), (3, 6), True), ((8, 4), (4, 8), False)]
)
def test_gradcheck(backend, variant, grid, key_grid, masked):
    query, key, value = (x.requires_grad_() for x in random_inputs(grid, key_grid, dim=3, dim_v=2, batch=1))
    weights = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64, requires_grad=True) if variant == "b" else None
    mask = torch.rand(1, 3, 6, generator=torch.Generator().manual_seed(1)) > 0.3 if masked else None

    def call(query, key, value, weights):
        return quadtree_attention(
            query,
            key,
            value,
            levels=3,
            topk=(2, 3),
            variant=variant,
            level_weights=weights,
            key_mask=mask,
            backend=backend,
        )

    assert torch.autograd.gradcheck(call, (query, key, value, weights))


@settings(max_examples=40, deadline=None)
@given(
    grid=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    key_grid=st.lists(st.integers(1, 9), min_size=3, max_size=3),
    levels=st.integers(1, 4),
    topk=st.integers(1, 20),
    variant=st.sampled_from(["a", "b"]),
    masked=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_cpu_equals_reference(grid, key_grid, levels, topk, variant, masked, seed):
    inputs = random_inputs(grid, key_grid[: len(grid)], dim=5, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    if masked:
        masks = {
            "query_mask": torch.rand(2, *grid, generator=generator) > 0.3,
            "key_mask": torch.rand(2, *key_grid[: len(grid)], generator=generator) > 0.5,
        }
    results = []
    for backend in BACKENDS:
        leaves = [x.clone().requires_grad_() for x in inputs]
        out, kept = quadtree_attention(
            *leaves, levels=levels, topk=topk, variant=variant, backend=backend, return_candidates=True, **masks
        )
        (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)).sum().backward()
        results.append((out, [x.grad for x in leaves], kept))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=1e-12)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=0, atol=1e-11)
    if variant == "b":
        for a, b in zip(results[0][2], results[1][2], strict=True):
            assert torch.equal(a, b.to(a.dtype))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "name",
    ["attn_a_self_16x16_t8-4-2", "attn_b_self_16x16_t4-4-4", "attn_b_cross_16x16_t8-4-2", "attn_b_self_8x8_t4"],
)
@pytest.mark.parametrize(("precision", "atol"), [("f64", 1e-9), ("f32", 2e-5)])
def test_golden(backend, name, precision, atol):
    arrays, meta = load(name)
    heads, dim, levels = meta["ctor"]["nhead"], meta["ctor"]["dim"], meta["levels"]
    dtype = {"f64": torch.float64, "f32": torch.float32}[precision]
    leaves = {
        n: torch.from_numpy(a).to(dtype).requires_grad_()
        for n, a in arrays.items()
        if n[:4] in ("in.q", "in.k", "in.v")
    }

    def pyramid(letter):
        finest_last = [leaves[f"in.{letter}{i}"] for i in reversed(range(levels))]
        return [x.permute(0, 2, 3, 1).unflatten(-1, (heads, dim)) for x in finest_last]

    weight = None
    if meta["module"] == "QTAttB":
        weight = leaves["param.weight"] = torch.from_numpy(arrays["param.weight"]).to(dtype).requires_grad_()
    out = quadtree_attention(
        pyramid("q"),
        pyramid("k"),
        pyramid("v"),
        topk=meta["ctor"]["topks"][: levels - 1],
        variant=meta["module"][-1].lower(),
        level_weights=None if weight is None else weight.softmax(0),
        backend=backend,
    ).flatten(1, 2)
    np.testing.assert_allclose(out.detach(), arrays[f"{precision}.out"], rtol=0, atol=atol)
    (out * torch.from_numpy(arrays["in.cotangent"]).to(dtype)).sum().backward()
    checked = 0
    for leaf, tensor in leaves.items():
        recorded = arrays.get(f"{precision}.grad.{leaf.removeprefix('in.')}")
        if recorded is not None:
            np.testing.assert_allclose(tensor.grad, recorded, rtol=0, atol=atol)
            checked += 1
    assert checked or precision == "f32"


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_go_to_the_lower_index(backend):
    same = torch.zeros(1, 8, 8, 1, 4)
    _, kept = quadtree_attention(same, same, same, levels=2, topk=3, backend=backend, return_candidates=True)
    assert (kept[0] == torch.tensor([0, 1, 2])).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_candidates(backend):
    """Kept keys are row-major indices, best first, and -1 fills up what is missing."""
    query, key, value = random_inputs((4, 4), (6, 10), heads=1, batch=1)
    key_mask = torch.zeros(1, 6, 10, dtype=torch.bool)
    key_mask[0, 4, 6] = key_mask[0, 0, 0] = True  # coarse cells (2, 3) and (0, 0) of a 3 x 5 grid
    _, kept = quadtree_attention(
        query, key, value, levels=2, topk=4, key_mask=key_mask, backend=backend, return_candidates=True
    )
    assert kept[0].shape == (1, 2, 2, 1, 4)
    assert kept[0].dtype == torch.int64
    coarse_query = token_pyramid(query, 2)[0][0, :, :, 0]
    scores = torch.stack([coarse_query @ key[0, 0, 0, 0], coarse_query @ key[0, 4, 6, 0]], -1)
    first_is_origin = scores[..., 0] > scores[..., 1]
    expected = torch.where(first_is_origin[..., None], torch.tensor([0, 13]), torch.tensor([13, 0]))
    assert torch.equal(kept[0][0, :, :, 0, :2], expected)
    assert (kept[0][..., 2:] == -1).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtypes_and_strides(backend, dtype):
    query, key, value = random_inputs((6, 7), (6, 7), dim=8, dim_v=8, dtype=dtype)
    exact = quadtree_attention(query.double(), key.double(), value.double(), levels=1, topk=())
    out = quadtree_attention(query, key, value, levels=1, topk=(), backend=backend)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=2e-2 if dtype != torch.float32 else 1e-5)
    strided = [x.permute(0, 2, 1, 3, 4).contiguous().permute(0, 2, 1, 3, 4) for x in (query, key, value)]
    assert not strided[0].is_contiguous()
    again = quadtree_attention(*strided, levels=3, topk=2, backend=backend)
    assert torch.equal(again, quadtree_attention(query, key, value, levels=3, topk=2, backend=backend))


@pytest.mark.parametrize("variant", ["a", "b"])
@pytest.mark.parametrize("backend", [*BACKENDS, "cuda"])
@pytest.mark.parametrize("grid", [(8, 8), (33, 47), (33,), (3, 5, 7)])
def test_no_images(backend, grid, variant):
    if backend == "cuda" and torch.cuda.is_available():
        pytest.skip("these tensors are on the CPU")
    leaves = [torch.zeros(0, *grid, 2, 4, requires_grad=True) for _ in range(3)]
    for mask in (None, torch.ones(0, *grid, dtype=torch.bool)):
        out, kept = quadtree_attention(
            *leaves, levels=3, topk=2, variant=variant, backend=backend, key_mask=mask, query_mask=mask,
            return_candidates=True,
        )  # fmt: skip
        out.sum().backward()
        assert out.shape == (0, *grid, 2, 4)
        assert [x.shape[0] for x in kept] == [0, 0]
        assert all(x.grad.shape == x.shape for x in leaves)


def test_pyramid_of_no_images():
    for grid in ((33,), (5, 6), (3, 5, 7)):
        x = torch.zeros(0, *grid, 2, 4)
        for levels in (token_pyramid(x, 2), token_pyramid(x, 2, mask=torch.ones(0, *grid, dtype=torch.bool))):
            assert [y.shape for y in levels] == [(0, *((n + 1) // 2 for n in grid), 2, 4), x.shape]


def test_blocks_change_nothing(monkeypatch):
    """The reference backend's blocks, which are recomputed in the backward pass, give what one block gives."""
    from quadtree_attention.ops import reference

    def run():
        leaves = [x.requires_grad_() for x in random_inputs((12, 9), (10, 11))]
        out = quadtree_attention(*leaves, levels=3, topk=(4, 3), variant="a", backend="reference")
        out.square().sum().backward()
        return [out, *(x.grad for x in leaves)]

    whole = run()
    monkeypatch.setattr(reference, "BLOCK_NUMBERS", 500)
    torch.testing.assert_close(run(), whole, rtol=0, atol=1e-12)


def test_token_pyramid():
    x = torch.arange(15.0).reshape(1, 3, 5, 1, 1)
    coarse, fine = token_pyramid(x, 2)
    assert torch.equal(fine, x)
    assert torch.equal(coarse[0, :, :, 0, 0], torch.tensor([[3.0, 5.0, 6.5], [10.5, 12.5, 14.0]]))
    mask = torch.zeros(1, 3, 5, dtype=torch.bool)
    mask[0, 0, 1] = True
    coarse = token_pyramid(x[..., 0], 2, mask=mask)[0]
    assert torch.equal(coarse[0, :, :, 0], torch.tensor([[1.0, 0, 0], [0, 0, 0]]))


def test_pyramid_of_rows():
    x = torch.arange(8.0).reshape(1, 8, 1, 1).requires_grad_()
    coarse, middle, fine = token_pyramid(x, 3)
    assert fine is x
    assert [level.flatten().tolist() for level in (coarse, middle)] == [[1.5, 5.5], [0.5, 2.5, 4.5, 6.5]]
    (coarse.sum() + 2 * middle[:, 0].sum()).backward()
    assert x.grad.flatten().tolist() == [1.25, 1.25, *[0.25] * 6]
    ragged = token_pyramid(torch.arange(5.0).reshape(1, 5, 1, 1), 2)[0]
    assert ragged.flatten().tolist() == [0.5, 2.5, 4.0]


def test_gradients_of_a_pyramid():
    x = torch.randn(2, 8, 12, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    pooled = [x.flatten(3).permute(0, 3, 1, 2)]
    for _ in range(2):
        pooled.append(torch.nn.functional.avg_pool2d(pooled[-1], 2))
    ours, theirs = token_pyramid(x, 3), pooled[::-1]
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.flatten(3).permute(0, 3, 1, 2), other)
    got, expected = (
        torch.autograd.grad(sum(level.pow(3).sum() for level in levels), x)[0] for levels in (ours, theirs)
    )
    torch.testing.assert_close(got, expected)
    small = torch.randn(1, 4, 4, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: sum(level.pow(3).sum() for level in token_pyramid(x, 3)), small)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(topk=(1, 2, 3)), "topk has 3 entries for 3 levels, expected 2"),
        (dict(topk=0), "at least 1"),
        (dict(variant="c"), "variant"),
        (dict(backend="gpu"), "backend"),
        (dict(levels=0), "levels"),
        (dict(variant="a", level_weights=torch.ones(3)), "variant 'b'"),
        (dict(level_weights=torch.ones(2)), "level_weights"),
        (dict(query_mask=torch.ones(1, 4, 5)), "torch.bool"),
        (dict(key_mask=torch.ones(1, 4, 4, dtype=torch.bool)), "key_mask has shape"),
        (dict(query=torch.zeros(1, 4, 5, 2, 3)), "key has dim"),
        (dict(query=torch.zeros(1, 4, 5, 2, 4, dtype=torch.float64)), "torch.float32"),
        (dict(query=torch.zeros(1, 4, 5, 2, 4, dtype=torch.int64)), "floating-point"),
        (dict(query=torch.zeros(4, 5)), "grid of 1, 2 or 3 axes"),
        (dict(query=torch.zeros(1, 0, 5, 2, 4)), "at least one token"),
        (dict(value=torch.zeros(1, 4, 4, 2, 4)), "value has grid"),
        (dict(query=[torch.zeros(1, 4, 5, 2, 4)]), "levels is 3, but 1 levels were given"),
        (
            dict(levels=None, key=[torch.zeros(1, 2, 3, 2, 4)], value=[torch.zeros(1, 2, 3, 2, 4)] * 2),
            "expected the same number",
        ),
    ],
)
def test_errors(change, message):
    x = torch.zeros(1, 4, 5, 2, 4)
    arguments = {"query": x, "key": x, "value": x, "levels": 3, "topk": 2} | change
    with pytest.raises(ValueError, match=message):
        quadtree_attention(**arguments)


def test_a_single_tensor_beside_pyramids_is_averaged():
    torch.manual_seed(0)
    query, key = torch.randn(1, 7, 6, 2, 4), torch.randn(1, 5, 8, 2, 4)
    values = [torch.randn(1, 2, 2, 2, 4), torch.randn(1, 3, 4, 2, 4), torch.randn(1, 5, 8, 2, 4)]
    want = quadtree_attention(token_pyramid(query, 3), token_pyramid(key, 3), values, topk=2)
    torch.testing.assert_close(quadtree_attention(query, key, values, topk=2), want)
    torch.testing.assert_close(quadtree_attention(token_pyramid(query, 3), key, values, topk=2), want)


def test_pyramid_errors():
    fine, coarse = torch.zeros(1, 5, 5, 1, 4), torch.zeros(1, 2, 2, 1, 4)
    with pytest.raises(ValueError, match=r"level 0 has shape \(1, 2, 2, 1, 4\), expected \(1, 3, 3, 1, 4\)"):
        quadtree_attention([coarse, fine], [coarse, fine], [coarse, fine], topk=1)


def test_export_keeps_sizes_free():
    class Net(torch.nn.Module):
        def forward(self, query, context):
            return quadtree_attention(query, context, context, levels=3, topk=(8, 4))

    net = Net()
    size = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        net,
        (torch.randn(1, 12, 9, 2, 8), torch.randn(1, 10, 13, 2, 8)),
        dynamic_shapes=({1: size, 2: size}, {1: size, 2: size}),
    )
    for grid, context_grid in (((12, 9), (10, 13)), ((17, 16), (5, 21)), ((5, 30), (8, 8))):
        x, y = torch.randn(1, *grid, 2, 8), torch.randn(1, *context_grid, 2, 8)
        torch.testing.assert_close(program.module()(x, y), net(x, y), rtol=0, atol=1e-5)


@pytest.mark.parametrize("grid", [(5, 13), (8, 20)])  # of which no other test keeps anything
@pytest.mark.parametrize("variant", ["a", "b"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_other_default_devices(backend, variant, grid):
    """Tensors stay where they are, whichever device new ones are made on; nothing that is kept for later calls is made there."""
    points = random_inputs(grid, grid, heads=3)
    mask = torch.rand(2, *grid, generator=torch.Generator().manual_seed(3)) > 0.3
    for options in (dict(query_mask=mask, key_mask=mask), {}):

        def run(options=options):
            leaves = [x.clone().requires_grad_() for x in points]
            out = quadtree_attention(*leaves, levels=3, topk=(2, 3), variant=variant, backend=backend, **options)
            plain = quadtree_attention(*points, levels=3, topk=(2, 3), variant=variant, backend=backend, **options)
            return [plain, out, *torch.autograd.grad(out.sin().sum(), leaves)]

        with torch.device("meta"):
            elsewhere = run()
        torch.testing.assert_close(elsewhere, run(), rtol=0, atol=0)
