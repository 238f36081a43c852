"""The attention modules: published numerics, masks, grids, errors."""

import numpy as np
import pytest
import torch

from quadtree_attention import quadtree_attention
from quadtree_attention.nn import FullAttention, LinearAttention, QuadtreeAttention, SpatialReductionAttention
from quadtree_attention.weights import convert_published

from ..golden import load

RIVALS = [FullAttention, LinearAttention, SpatialReductionAttention]


def parameters(arrays):
    return {key.removeprefix("param."): torch.from_numpy(a) for key, a in arrays.items() if key.startswith("param.")}


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize(("precision", "atol"), [("f64", 1e-9), ("f32", 2e-5)])
@pytest.mark.parametrize("name", ["cls_attention_A_sr3", "cls_attention_B_sr4"])
def test_published_module(name, precision, atol, backend):
    """Output and all gradients of the original's attention module, loaded through convert_published."""
    arrays, meta = load(name)
    b = meta["ctor"]["attn_type"] == "B"
    options = dict(variant="b", value="conv", lepe=True) if b else dict(variant="a")
    module = QuadtreeAttention(16, 2, levels=meta["ctor"]["sr_ratio"], topk=8, backend=backend, **options)
    module.load_state_dict(convert_published(parameters(arrays)))
    dtype = {"f64": torch.float64, "f32": torch.float32}[precision]
    module = module.to(dtype)
    x = torch.from_numpy(arrays["in.x"]).to(dtype).requires_grad_()
    out = module(x.reshape(1, meta["H"], meta["W"], 16)).reshape(x.shape)
    np.testing.assert_allclose(out.detach(), arrays[f"{precision}.out"], rtol=0, atol=atol)
    (out * torch.from_numpy(arrays["in.cotangent"]).to(dtype)).sum().backward()
    np.testing.assert_allclose(x.grad, arrays[f"{precision}.grad.x"], rtol=0, atol=atol)
    if precision == "f64":  # these were recorded in float32
        recorded = {
            key.removeprefix("f64.grad.param."): torch.from_numpy(a) for key, a in arrays.items() if "grad.param" in key
        }
        recorded = convert_published(recorded)
        for key, parameter in module.named_parameters():
            torch.testing.assert_close(parameter.grad.float(), recorded[key].float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("precision", "atol"), [("f64", 1e-9), ("f32", 2e-5)])
@pytest.mark.parametrize("name", ["attn_b_self_16x16_t8-4-2_lepe", "attn_b_self_8x12_t5-3_lepe"])
def test_published_lepe(name, precision, atol):
    """The original's core with LePE: values of each level are given, so the module's own pyramid is left out."""
    arrays, meta = load(name)
    levels, heads = meta["levels"], meta["ctor"]["nhead"]
    dtype = {"f64": torch.float64, "f32": torch.float32}[precision]
    module = QuadtreeAttention(16, heads, levels=levels, topk=meta["ctor"]["topks"][: levels - 1], lepe=True)
    module.load_state_dict(convert_published(parameters(arrays)), strict=False)
    module = module.to(dtype)
    leaves = {
        key: torch.from_numpy(arrays[key]).to(dtype).requires_grad_()
        for key in arrays
        if key[:4] in ("in.q", "in.k", "in.v")
    }
    pyramid = lambda letter: [leaves[f"in.{letter}{i}"].permute(0, 2, 3, 1) for i in reversed(range(levels))]  # noqa: E731
    q, k, v = pyramid("q"), pyramid("k"), pyramid("v")
    weights = module.level_weights.softmax(0)
    split = lambda level: [module.heads(x) for x in level]  # noqa: E731
    out = quadtree_attention(split(q), split(k), split(v), topk=module.topk, level_weights=weights)
    out = module.heads(module._add_positions(out.flatten(-2), v, weights))
    np.testing.assert_allclose(out.detach().flatten(1, 2), arrays[f"{precision}.out"], rtol=0, atol=atol)
    (out.flatten(1, 2) * torch.from_numpy(arrays["in.cotangent"]).to(dtype)).sum().backward()
    for key, leaf in leaves.items():
        np.testing.assert_allclose(leaf.grad, arrays[f"{precision}.grad.{key.removeprefix('in.')}"], rtol=0, atol=atol)
    np.testing.assert_allclose(
        module.level_weights.grad, arrays[f"{precision}.grad.param.weight"], rtol=0, atol=max(atol, 1e-9) * 10
    )


def brute_linear(module, x, context):
    """LoFTR's linear attention, one query at a time."""
    feature = lambda y: torch.where(y > 0, y + 1, y.exp())  # noqa: E731
    q, k, v = (
        module.heads(p(y)).flatten(1, 2)
        for p, y in ((module.q_proj, x), (module.k_proj, context), (module.v_proj, context))
    )
    scores = torch.einsum("bnhd,bmhd->bnmh", feature(q), feature(k))
    out = torch.einsum("bnmh,bmhd->bnhd", scores / scores.sum(2, keepdim=True), v)
    return module.proj(out.flatten(-2)).reshape(x.shape)


def test_rivals_compute_what_they_say():
    torch.manual_seed(0)
    x, context = torch.randn(2, 5, 6, 16, dtype=torch.float64), torch.randn(2, 7, 3, 16, dtype=torch.float64)
    linear = LinearAttention(16, 4).double()
    torch.testing.assert_close(linear(x, context), brute_linear(linear, x, context), rtol=1e-5, atol=1e-6)
    full = FullAttention(16, 4).double()
    one_level = QuadtreeAttention(16, 4, levels=1, topk=()).double()
    one_level.load_state_dict({**full.state_dict(), "level_weights": torch.zeros(1)})
    torch.testing.assert_close(full(x, context), one_level(x, context), rtol=0, atol=1e-12)
    reduced = SpatialReductionAttention(16, 4, pool=3).double()
    reduced.load_state_dict(full.state_dict())
    pooled = torch.nn.functional.adaptive_avg_pool2d(context.permute(0, 3, 1, 2), 3).permute(0, 2, 3, 1)
    torch.testing.assert_close(reduced(x, context), full(x, pooled), rtol=0, atol=1e-12)


@pytest.mark.parametrize("grid", [(9,), (7, 5), (3, 4, 5)])
@pytest.mark.parametrize("kind", [*RIVALS, QuadtreeAttention])
def test_any_grid_and_context(kind, grid):
    module = kind(16, 2)
    x, context = torch.randn(2, *grid, 16), torch.randn(2, *(g + 2 for g in grid), 16)
    assert module(x).shape == x.shape
    out = module(x, context)
    assert out.shape == x.shape
    out.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize(
    "make",
    [
        lambda: FullAttention(16, 2),
        lambda: LinearAttention(16, 2),
        lambda: QuadtreeAttention(16, 2),
        lambda: QuadtreeAttention(16, 2, variant="a"),
        lambda: QuadtreeAttention(16, 2, value="conv", lepe=True),
    ],
)
def test_padding_changes_nothing(make):
    """A padded batch gives for each image what the image alone gives, and zeros elsewhere."""
    torch.manual_seed(0)
    module = make().double()
    small = torch.randn(1, 6, 5, 16, dtype=torch.float64)
    mask = torch.zeros(1, 9, 12, dtype=torch.bool)
    mask[:, :6, :5] = True
    padded = torch.full((1, 9, 12, 16), 3.0, dtype=torch.float64)
    padded[:, :6, :5] = small
    out = module(padded, mask=mask)
    torch.testing.assert_close(out[:, :6, :5], module(small), rtol=0, atol=1e-12)
    assert (out[~mask] == 0).all()


@pytest.mark.parametrize("options", [{}, {"variant": "a"}, {"value": "conv", "lepe": True}], ids=str)
def test_no_images(options):
    attention = QuadtreeAttention(32, 2, levels=3, topk=2, **options)
    x = torch.zeros(0, 33, 47, 32, requires_grad=True)
    for mask in (None, torch.ones(0, 33, 47, dtype=torch.bool)):
        out = attention(x, mask=mask)
        out.sum().backward()
        assert out.shape == x.shape == x.grad.shape


@pytest.mark.parametrize("kind", [*RIVALS, QuadtreeAttention])
def test_masked_context_is_not_seen(kind):
    module = kind(16, 2)
    x, context = torch.randn(2, 4, 4, 16), torch.randn(2, 6, 6, 16)
    mask = torch.rand(2, 6, 6) > 0.5
    mask[1] = False
    other = torch.where(mask[..., None], context, 100.0)
    out = module(x, context, context_mask=mask)
    torch.testing.assert_close(out, module(x, other, context_mask=mask))
    torch.testing.assert_close(out[1], module.proj.bias.expand_as(out[1]))  # nothing to attend


def test_autocast():
    for kind in (*RIVALS, QuadtreeAttention):
        module, x = kind(32, 4), torch.randn(1, 12, 12, 32)
        with torch.autocast("cpu", torch.bfloat16):
            out = module(x)
        torch.testing.assert_close(out.float(), module(x), rtol=0.1, atol=0.02)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: QuadtreeAttention(16, 3), "num_heads"),
        (lambda: QuadtreeAttention(16, 2, topk=(1, 2, 3)), "topk has 3 entries"),
        (lambda: QuadtreeAttention(16, 2, variant="c"), "variant"),
        (lambda: QuadtreeAttention(16, 2, value="mean"), "value"),
        (lambda: QuadtreeAttention(16, 2, value_act="tanh"), "value_act"),
        (lambda: QuadtreeAttention(16, 2, variant="a", lepe=True), "lepe"),
        (lambda: QuadtreeAttention(16, 2)(torch.zeros(1, 4, 4, 8)), "expected"),
        (lambda: QuadtreeAttention(16, 2)(torch.zeros(1, 4, 4, 16), torch.zeros(1, 4, 16)), "context has shape"),
        (lambda: QuadtreeAttention(16, 2)(torch.zeros(1, 4, 4, 16), mask=torch.ones(1, 4, 4)), "torch.bool"),
        (lambda: QuadtreeAttention(16, 2, lepe=True)(torch.zeros(1, 4, 16)), "two-dimensional"),
        (lambda: QuadtreeAttention(16, 2, lepe=True)(torch.zeros(1, 4, 4, 16), torch.zeros(1, 5, 4, 16)), "lepe"),
        (
            lambda: FullAttention(16, 2)(torch.zeros(1, 4, 16), context_mask=torch.ones(1, 4, dtype=torch.bool)),
            "without context",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
