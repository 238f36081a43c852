"""Derivatives beyond one backward pass: right, or an error, for every backend; never a wrong number."""

import pytest
import torch
from torch.autograd import forward_ad

from quadtree_attention import QuadtreeAttention, quadtree_attention, token_pyramid
from quadtree_attention.ops import cpu, reference

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")  # torch.func.jvp's own

# The kernels of "cuda" know no float64; it is compared at float32's rounding.
BACKENDS = [
    "reference",
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="interpreted")),
]
VARIANTS = ["a", "b"]


def case(backend, variant, grid=(5, 6)):
    """A function of query, key and value, three points and three directions."""
    generator = torch.Generator().manual_seed(0)
    dtype = torch.float32 if backend == "cuda" else torch.float64
    points, directions = (
        [torch.randn(2, *grid, 2, 4, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)]
        for _ in range(2)
    )
    mask = torch.rand(2, *grid, generator=generator) > 0.2

    def call(*qkv, backend=backend):
        return quadtree_attention(*qkv, levels=3, topk=(2, 3), variant=variant, key_mask=mask, backend=backend)

    return call, points, directions, 1e-9 if dtype == torch.float64 else 1e-5


def slope(call, points, directions):
    """The directional derivative by central differences, of the reference in float64; error about 1e-9."""
    points, directions = ([x.double() for x in tensors] for tensors in (points, directions))
    ahead, behind = (
        call(*(p + sign * 1e-5 * d for p, d in zip(points, directions, strict=True)), backend="reference")
        for sign in (1, -1)
    )
    return (ahead - behind) / 2e-5


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_mode(backend, variant):
    call, points, directions, atol = case(backend, variant)
    expected = slope(call, points, directions)
    assert expected.norm() > 1
    out, derivative = torch.func.jvp(call, tuple(points), tuple(directions))
    torch.testing.assert_close(out, call(*points), rtol=0, atol=atol)
    torch.testing.assert_close(derivative.double(), expected, rtol=0, atol=max(atol, 1e-7))
    with forward_ad.dual_level():
        dual = call(*(forward_ad.make_dual(p, d) for p, d in zip(points, directions, strict=True)))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, derivative)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_grad_and_vmap(backend, variant):
    call, points, _, atol = case(backend, variant, grid=(3, 4))
    leaves = [x.clone().requires_grad_() for x in points]
    expected = torch.autograd.grad(call(*leaves).square().sum(), leaves)
    gradients = torch.func.grad(lambda *qkv: call(*qkv).square().sum(), argnums=(0, 1, 2))(*points)
    torch.testing.assert_close(gradients, expected, rtol=0, atol=10 * atol)

    def alone(query, key, value):
        return quadtree_attention(
            query[None], key[None], value[None], levels=3, topk=(2, 3), variant=variant, backend=backend
        )[0]

    batch = quadtree_attention(*points, levels=3, topk=(2, 3), variant=variant, backend=backend)
    torch.testing.assert_close(torch.func.vmap(alone)(*points), batch, rtol=0, atol=atol)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_jacobians(backend, variant):
    call, points, _, atol = case(backend, variant, grid=(3, 4))

    def of_query(query):
        return call(query, *points[1:]).sum((1, 2))

    backward = torch.func.jacrev(of_query)(points[0])
    torch.testing.assert_close(torch.func.jacfwd(of_query)(points[0]), backward, rtol=0, atol=10 * atol)
    loops = torch.autograd.functional.jacobian(of_query, points[0])
    torch.testing.assert_close(backward, loops, rtol=0, atol=10 * atol)
    batched = torch.autograd.functional.jacobian(of_query, points[0], vectorize=True)  # a backward pass under vmap
    torch.testing.assert_close(batched, loops, rtol=0, atol=10 * atol)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_double_backward(backend, variant, masked):
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(1, 3, 4, 1, 2, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)]
    weights = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True) if variant == "b" else None
    mask = torch.rand(1, 3, 4, generator=generator) > 0.3 if masked else None

    def call(query, key, value, weights):
        return quadtree_attention(
            query, key, value, levels=2, topk=2, variant=variant, level_weights=weights, key_mask=mask, query_mask=mask,
            backend=backend,
        )  # fmt: skip

    assert torch.autograd.gradgradcheck(call, (*leaves, weights))


@pytest.mark.parametrize("variant", VARIANTS)
def test_double_backward_of_cuda(variant):
    call, points, _, _ = case("cuda", variant, grid=(3, 4))
    seconds = []
    for backend in ("cuda", "reference"):
        leaves = [x.clone().requires_grad_() for x in points]
        first = torch.autograd.grad(call(*leaves, backend=backend).square().sum(), leaves, create_graph=True)
        seconds.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
    torch.testing.assert_close(*seconds, rtol=1e-4, atol=1e-4)


def test_the_normal_path_is_the_kernels(monkeypatch):
    """One backward pass, create_graph=False, runs no reference operation."""
    call, points, _, _ = case("cpu", "b")
    for name in ("attend", "gradients"):
        monkeypatch.setattr(reference, name, None)
    monkeypatch.setattr(cpu, "gradients", None)
    leaves = [x.clone().requires_grad_() for x in points]
    call(*leaves).sum().backward()


def module_and_input(**options):
    torch.manual_seed(0)
    module = QuadtreeAttention(32, num_heads=2, levels=3, topk=(8, 8), **options).double()
    with torch.no_grad():
        for parameter in module.parameters():  # far from the small weights that a module begins with
            parameter.copy_(torch.randn_like(parameter) / 3)
    return module, torch.randn(2, 11, 16, 32, dtype=torch.float64), torch.randn(2, 11, 16, 32, dtype=torch.float64)


@pytest.mark.parametrize("options", [{}, {"variant": "a"}, {"value": "conv", "lepe": True}], ids=str)
def test_module(options):
    module, x, direction = module_and_input(**options)
    expected = (module(x + 1e-5 * direction) - module(x - 1e-5 * direction)) / 2e-5
    assert expected.norm() > 1
    torch.testing.assert_close(torch.func.jvp(module, (x,), (direction,))[1], expected, rtol=1e-6, atol=1e-6)
    parameters = dict(module.named_parameters())

    def loss(parameters, x):
        return torch.func.functional_call(module, parameters, (x[None],)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)  # gradients of each image by itself
    for index in range(2):
        gradients = torch.autograd.grad(module(x[index, None]).square().sum(), list(parameters.values()))
        for name, gradient in zip(parameters, gradients, strict=True):
            torch.testing.assert_close(each[name][index], gradient, rtol=1e-9, atol=1e-9)


def test_compiled():
    module, x, direction = module_and_input()
    expected = torch.func.jvp(module, (x,), (direction,))[1]
    compiled = torch.compile(lambda x, d: torch.func.jvp(module, (x,), (d,))[1], backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, direction), expected)


def test_the_tree_alone():
    """token_pyramid, which has fast paths of its own."""
    x, direction = (torch.randn(2, 5, 8, 2, 3, dtype=torch.float64) for _ in range(2))
    _, derivative = torch.func.jvp(lambda x: token_pyramid(x, 3), (x,), (direction,))
    torch.testing.assert_close(derivative, token_pyramid(direction, 3))  # it is linear


def test_autocast_does_not_narrow_the_reference():
    """Sums stay in float32 under autocast, also where the reference stands in for kernels."""
    call, points, directions, _ = case("cuda", "b")
    exact = torch.func.jvp(call, tuple(points), tuple(directions))
    with torch.autocast("cpu", torch.bfloat16):
        narrow = torch.func.jvp(call, tuple(points), tuple(directions))
    torch.testing.assert_close(narrow, exact, rtol=0, atol=0)
