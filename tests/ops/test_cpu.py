"""The Numba backend as a library citizen: torch.library, torch.compile, threads, forks, chunks, missing Numba."""

import gc
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from quadtree_attention import quadtree_attention
from quadtree_attention.ops import cpu, dispatch, threads


def inputs(grid=(20, 24), heads=4, dim=8, dtype=torch.float32, seed=0, grad=False):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, *grid, heads, dim, generator=generator, dtype=dtype).requires_grad_(grad) for _ in range(3)]


def run(variant="b", **options):
    leaves = inputs(grad=True)
    out = quadtree_attention(*leaves, levels=3, topk=(6, 4), variant=variant, backend="cpu", **options)
    out.square().sum().backward()
    return [out.detach(), *(x.grad for x in leaves)]


@pytest.fixture
def thread_count():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("variant", ["a", "b"])
def test_same_bits_for_any_number_of_threads(thread_count, variant, kind_of_threads):
    thread_count(1)
    alone = run(variant)
    for count in (2, 3, 4):
        thread_count(count)
        for one, other in zip(alone, run(variant), strict=True):
            assert torch.equal(one, other)


def test_concurrent_calls(kind_of_threads):
    expected = run()
    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(lambda _: run(), range(16)):
            assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))


@pytest.fixture(params=["torch's threads", "a pool"])
def kind_of_threads(request, monkeypatch):
    if request.param == "a pool":
        monkeypatch.setattr(threads, "gomp_parallel", lambda work: None)
    elif threads.gomp_parallel(threads._WORK) is None:
        pytest.skip("this torch has no OpenMP library of its own")


def test_every_row_runs_once_and_errors_are_raised(thread_count, kind_of_threads):
    thread_count(3)
    seen = torch.zeros(1000, dtype=torch.int32)

    def mark(start, stop):
        seen[start:stop] += 1

    threads.run(mark, 1000)
    assert (seen == 1).all()
    with pytest.raises(ZeroDivisionError):
        threads.run(lambda start, stop: 1 // 0, 1000)


def test_nothing_is_held_after_a_call(thread_count, kind_of_threads):
    """Arrays that a task holds are freed at once, not by the garbage collector: a backward pass would hold twice as much."""
    thread_count(2)

    class Task:
        def __call__(self, start, stop):
            pass

    task = Task()
    held = weakref.ref(task)
    gc.disable()
    try:
        threads.run(task, 100)
        del task
        assert held() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_in_a_worker(method, tmp_path):
    """A DataLoader's worker, forked after the pool has been used or started anew, uses one of its own."""
    script = tmp_path / "script.py"
    script.write_text(
        """
import sys
import torch
from quadtree_attention import quadtree_attention
from quadtree_attention.ops import threads

def call():
    x = torch.randn(1, 16, 16, 2, 8, generator=torch.Generator().manual_seed(0))
    return quadtree_attention(x, x, x, levels=2, topk=4, backend="cpu")

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 2
    def __getitem__(self, index):
        rows = []
        # Only our threads: torch.set_num_threads(2) in a forked worker may hang (suspected, not confirmed).
        torch.get_num_threads = lambda: 2
        threads.run(lambda start, stop: rows.extend(range(start, stop)), 100)
        assert sorted(rows) == list(range(100))
        torch.get_num_threads = lambda: 1
        return call()

if __name__ == "__main__":
    torch.set_num_threads(2)
    expected = call()
    for batch in torch.utils.data.DataLoader(Data(), num_workers=1, multiprocessing_context=sys.argv[1]):
        assert torch.equal(batch[0], expected)
"""
    )
    subprocess.run([sys.executable, script, method], timeout=300, check=True)


def test_root_chunks_change_nothing(monkeypatch):
    whole = [run("a"), run("b")]
    monkeypatch.setattr(cpu, "ROOT_CHUNK", 200)
    for variant, expected in zip("ab", whole, strict=True):
        torch.testing.assert_close(run(variant), expected, rtol=1e-5, atol=1e-5)


def test_uninitialised_memory_is_never_read(monkeypatch):
    """torch.empty filled with NaN, as torch does it for deterministic algorithms."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    try:
        assert all(x.isfinite().all() for variant in "ab" for x in run(variant))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("variant_a", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_opcheck(variant_a, masked):
    generator = torch.Generator().manual_seed(0)

    def levels(sizes):
        return [torch.randn(1, 2, n, 4, generator=generator, dtype=torch.float64).requires_grad_() for n in sizes]

    q, k, v = levels((4, 16)), levels((6, 24)), levels((6, 24))
    valid = [torch.rand(1, 24, generator=generator) > 0.3]
    valid.insert(0, valid[0].unflatten(1, (6, 4)).any(2))
    weights = torch.ones(2, dtype=torch.float64, requires_grad=not variant_a)
    torch.library.opcheck(cpu.forward_op, (q, k, v, valid if masked else [], [3, 0], variant_a, weights))


def test_compile_without_graph_breaks():
    leaves = inputs(grad=True)
    weights = torch.tensor([0.2, 0.3, 0.5], requires_grad=True)

    def call(q, k, v, w):
        return quadtree_attention(q, k, v, levels=3, topk=(6, 4), level_weights=w)

    expected = call(*leaves, weights)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    out = compiled(*leaves, weights)
    torch.testing.assert_close(out, expected)
    gradients = torch.autograd.grad(out.square().sum(), [*leaves, weights])
    torch.testing.assert_close(gradients, torch.autograd.grad(expected.square().sum(), [*leaves, weights]))


def test_autocast_leaves_sums_alone():
    q, k, v = inputs(dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        out = quadtree_attention(q, k, v, levels=2, topk=4)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, quadtree_attention(q, k, v, levels=2, topk=4))


def test_meta_tensors():
    x = torch.empty(2, 9, 7, 3, 8, device="meta")
    assert quadtree_attention(x, x, x, levels=3, topk=2).shape == x.shape


def test_without_numba(monkeypatch):
    monkeypatch.setattr(dispatch, "HAS_NUMBA", False)
    monkeypatch.setattr(dispatch, "_warned", set())
    x = torch.randn(1, 4, 4, 1, 4)
    with pytest.warns(UserWarning, match="Numba is not installed"):
        quadtree_attention(x, x, x, levels=2, topk=2)
    quadtree_attention(x, x, x, levels=2, topk=2)  # only once
    with pytest.raises(ValueError, match="pip install numba"):
        quadtree_attention(x, x, x, levels=2, topk=2, backend="cpu")
    assert dispatch.supports("cpu", x) == (False, "Numba is not installed; pip install numba")
