"""The Triton kernels against the reference: on a GPU where there is one, else interpreted on the CPU (see conftest.py)."""

import numpy as np
import pytest
import torch

from quadtree_attention import quadtree_attention
from quadtree_attention.ops import dispatch

tl = pytest.importorskip("triton.language")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@pytest.fixture(autouse=True)
def nan_in_new_memory():
    """Memory that nothing has written must not reach any result."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def bfloat16_products(monkeypatch):
    """Triton's interpreter multiplies the bits of bfloat16 numbers as if they were whole numbers: give it float32 in their place."""
    from triton.runtime import interpreter

    create_dot = interpreter.InterpreterBuilder.create_dot

    def widened(x):
        if x.dtype.scalar != tl.bfloat16:
            return x
        return interpreter.TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def product(self, a, b, *rest):
        return create_dot(self, widened(a), widened(b), *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", product)


def inputs(grid, key_grid=None, heads=2, dim=16, dim_v=None, batch=1, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(grid, dim), (key_grid or grid, dim), (key_grid or grid, dim_v or dim)]
    made = [torch.randn(batch, *g, heads, d, generator=generator).to(dtype).to(DEVICE) for g, d in shapes]
    return [x.requires_grad_() for x in made]


def both(backend, tensors, weights=None, **options):
    """Output, kept keys and gradients of everything."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    if weights is not None:
        options["level_weights"] = weights = weights.to(DEVICE).clone().requires_grad_()
        leaves.append(weights)
    out, kept = quadtree_attention(*leaves[:3], backend=backend, return_candidates=True, **options)
    pull = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE).to(out.dtype)
    return out.detach(), kept, torch.autograd.grad((out * pull).float().sum(), leaves)


def check(tensors, **options):
    dtype = tensors[0].dtype
    # Rounding decides between keys that are nearly alike: the truth is that of the same numbers in float32.
    expected = both("reference", [x.detach().float() for x in tensors], **options)
    out, kept, gradients = both("cuda", tensors, **options)
    assert out.dtype == dtype
    for one, other in zip(kept, expected[1], strict=True):
        assert torch.equal(one, other)
    for one, other in zip([out, *gradients], [expected[0], *expected[2]], strict=True):
        # What cancels to zero, as gradients of a softmax over one key, keeps the rounding of its parts, which are of order one.
        error = (one.float() - other).abs().max() / other.abs().max().clamp(min=0.5)
        assert error < TOLERANCE[dtype]
        assert one.isfinite().all()


@pytest.mark.parametrize("variant", ["a", "b"])
@pytest.mark.parametrize(
    ("grid", "key_grid", "topk"),
    [
        ((8, 8), None, (4, 4)),
        ((5, 7), (6, 3), (5, 3)),  # ragged, cross, K not a power of two
        ((12, 4), (4, 12), (100, 7)),  # K above the token count at the first level
        ((1, 1), None, (1, 1)),
        ((13,), (19,), (2, 3, 4)),
        ((3, 4, 5), None, (3,)),
        ((7, 5), None, ()),
    ],
)
def test_as_reference(variant, grid, key_grid, topk):
    levels = len(topk) + 1
    weights = torch.rand(levels, generator=torch.Generator().manual_seed(2)) + 0.5 if variant == "b" else None
    check(inputs(grid, key_grid), levels=levels, topk=topk, variant=variant, weights=weights)


@pytest.mark.parametrize("variant", ["a", "b"])
def test_lists_longer_than_a_step(variant, monkeypatch):
    """Lists of 36 and 80 places, 16 a step, and 20 keys kept: softmax and selection are merged over steps, each shorter than what is kept."""
    from quadtree_attention.ops import cuda

    monkeypatch.setattr(cuda, "STEP", 16)
    check(inputs((12, 12), heads=1), levels=3, topk=(9, 20), variant=variant)


@pytest.mark.parametrize("variant", ["a", "b"])
def test_masks(variant):
    generator = torch.Generator().manual_seed(2)
    query_mask, key_mask = (torch.rand(2, 7, 10, generator=generator) > 0.4 for _ in range(2))
    key_mask[1] = False  # nothing to attend: zeros
    tensors = inputs((7, 10), heads=1, batch=2)
    options = {"query_mask": query_mask.to(DEVICE), "key_mask": key_mask.to(DEVICE), "variant": variant}
    check(tensors, levels=3, topk=(4, 3), **options)
    out = quadtree_attention(*tensors, levels=3, topk=(4, 3), backend="cuda", **options)
    assert not out[1].any()


@pytest.mark.parametrize("variant", ["a", "b"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(variant, dtype):
    tensors = inputs((8, 8), dtype=dtype)
    expected = both("reference", tensors, levels=3, topk=(3, 4), variant=variant)
    out, _, gradients = both("cuda", tensors, levels=3, topk=(3, 4), variant=variant)
    assert out.dtype == dtype
    for one, other in zip([out, *gradients], [expected[0], *expected[2]], strict=True):
        # Pooled keys are rounded alike, so the same keys are kept but for rare ties.
        close = ((one - other).abs() <= TOLERANCE[dtype] * other.abs().max()).float().mean()
        assert close > 0.99


@pytest.mark.parametrize(("dim", "dim_v", "heads"), [(8, 8, 3), (24, 40, 1), (100, 12, 1), (256, 256, 1), (16, 16, 11)])
def test_heads_and_channels(dim, dim_v, heads):
    check(inputs((4, 6), heads=heads, dim=dim, dim_v=dim_v), levels=2, topk=3, variant="a")


def test_ties_go_to_the_lower_index():
    x = torch.ones(1, 8, 8, 1, 16, device=DEVICE)
    kept = [
        quadtree_attention(x, x, x, levels=3, topk=(3, 5), backend=b, return_candidates=True)[1]
        for b in ("cuda", "reference")
    ]
    assert all(torch.equal(one, other) for one, other in zip(*kept, strict=True))


def test_same_bits_every_time():
    tensors = inputs((8, 8))
    first, second = (both("cuda", tensors, levels=3, topk=(4, 4), variant="a") for _ in range(2))
    for one, other in zip([first[0], *first[2]], [second[0], *second[2]], strict=True):
        assert torch.equal(one, other)


def test_not_contiguous():
    x = inputs((4, 6), heads=2)[0].detach()
    turned = x.permute(0, 2, 1, 4, 3).contiguous().permute(0, 2, 1, 4, 3)
    assert not turned.is_contiguous()
    options = {"levels": 2, "topk": 4, "backend": "cuda"}
    assert torch.equal(quadtree_attention(turned, turned, turned, **options), quadtree_attention(x, x, x, **options))


def test_empty_batch():
    tensors = inputs((8, 8), batch=0)
    out, kept, gradients = both("cuda", tensors, levels=2, topk=4)
    assert out.shape == (0, 8, 8, 2, 16)
    assert kept[0].shape == (0, 4, 4, 2, 4)
    assert [x.shape for x in gradients] == [x.shape for x in tensors]


def test_offsets_of_64_bits(monkeypatch):
    """Heads of more than 2^31 numbers do not fit here; their arithmetic does."""
    from quadtree_attention.ops import cuda

    init = cuda._Level.__init__

    def wide(self, *arguments):
        init(self, *arguments)
        self.shape["WIDE"] = True

    monkeypatch.setattr(cuda._Level, "__init__", wide)
    for variant in "ab":
        check(inputs((4, 6)), levels=2, topk=4, variant=variant)


def test_queries_by_key():
    from quadtree_attention.ops.cuda import queries_by_key

    kept = torch.tensor([[[[2, 0], [2, -1]], [[1, 2], [0, 1]]]], dtype=torch.int32)  # 2 heads, 2 queries, 3 keys
    entries, first = queries_by_key(kept, 3)
    assert first.tolist() == [0, 1, 1, 3, 4, 6, 7]
    assert entries[:7].tolist() == [1, 0, 2, 6, 4, 7, 5]


@pytest.mark.parametrize("variant_a", [False, True])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
def test_opcheck(variant_a):
    from quadtree_attention.ops.cuda import forward_op

    torch.use_deterministic_algorithms(False)  # opcheck compares memory that nothing has written
    generator = torch.Generator().manual_seed(0)

    def levels(sizes):
        return [torch.randn(1, 2, n, 16, generator=generator).to(DEVICE).requires_grad_() for n in sizes]

    weights = torch.ones(2, device=DEVICE, requires_grad=not variant_a)
    torch.library.opcheck(
        forward_op, (levels((4, 16)), levels((6, 24)), levels((6, 24)), [], [3, 0], variant_a, weights)
    )


def test_compile_without_graph_breaks():
    tensors = inputs((4, 6))

    def call(q, k, v):
        return quadtree_attention(q, k, v, levels=2, topk=4, backend="cuda")

    out = torch.compile(call, fullgraph=True, backend="aot_eager")(*tensors)
    torch.testing.assert_close(out, call(*tensors))
    torch.testing.assert_close(
        torch.autograd.grad(out.sum(), tensors), torch.autograd.grad(call(*tensors).sum(), tensors)
    )


def test_what_it_does_not_take(monkeypatch):
    x = torch.zeros(1, 4, 4, 1, 16, device=DEVICE)
    assert dispatch.supports("cuda", x) == (True, "")
    assert dispatch.supports("cuda", x.double())[1] == "it knows float16, bfloat16 and float32, these are torch.float64"
    assert "at most 256 channels" in dispatch.supports("cuda", x, torch.zeros(1, 4, 4, 1, 300))[1]
    assert "at most 1024 keys" in dispatch.supports("cuda", x, x, 2000)[1]
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert dispatch.supports("cuda", x.cpu())[1] == "it runs on CUDA tensors, these are on cpu"
    monkeypatch.setattr(dispatch, "HAS_TRITON", False)
    with pytest.raises(ValueError, match="backend 'cuda' cannot be used: Triton is not installed"):
        quadtree_attention(x, x, x, levels=2, topk=2, backend="cuda")


def test_default_on_a_gpu(monkeypatch):
    """Which backend a CUDA tensor gets, told from what `choose` asks it: no GPU is needed to know."""

    class Stub:
        device, dtype, shape, is_cuda = torch.device("cuda", 0), torch.float32, (1, 4, 4, 1, 16), True

    capability = [(9, 0)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability[0])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "An old one")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(dispatch, "_warned", set())
    assert dispatch.choose(None, Stub(), Stub(), 16).__module__.endswith("ops.cuda")
    capability[0] = (7, 5)
    with pytest.warns(
        UserWarning, match=r"An old one has a compute capability below 8.0\. Quadtree attention runs on the slower"
    ):
        assert dispatch.choose(None, Stub(), Stub(), 16).__module__.endswith("ops.reference")
    monkeypatch.setattr(dispatch, "HAS_TRITON", False)
    with pytest.warns(UserWarning, match="Triton is not installed"):
        assert dispatch.choose(None, Stub(), Stub(), 16).__module__.endswith("ops.reference")
    dispatch.choose(None, Stub(), Stub(), 16)  # said once; a second warning would be an error


def test_tensorfloat_only_where_torch_allows_it():
    from quadtree_attention.ops.cuda import dot_precision

    setting = torch.backends.cuda.matmul
    before = setting.fp32_precision
    try:
        assert dot_precision() == "ieee"
        setting.fp32_precision = "tf32"
        assert dot_precision() == ("ieee" if torch.version.hip else "tf32")
        setting.fp32_precision = "ieee"
        assert dot_precision() == "ieee"
    finally:
        setting.fp32_precision = before
