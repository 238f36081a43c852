"""All of the benchmark for GPUs but the device's clock runs here, on the CPU."""

from dataclasses import replace

import pytest
import torch

from quadtree_attention.bench import gpu, gpu_counts
from quadtree_attention.bench.cpu import Case
from quadtree_attention.viz.chart import save_chart

SMALL = Case((16, 24), (4, 4), heads=2, dim=8, batch=2)


def test_the_coarsest_level_stays_as_it_is():
    cases = gpu.cases()
    assert [(case.grid[0], case.batch) for case in cases[:3]] == [(32, 1), (32, 8), (64, 1)]
    assert [case.topk for case in cases[::2]] == [(32,), (32, 16), (32, 16, 16), (32, 16, 16, 16), (32, 16, 16, 16, 16)]
    assert {case.grid[0] >> (case.levels - 1) for case in cases} == {16}


def test_sweep_on_the_cpu(tmp_path):
    seen = []
    table = gpu.compare([SMALL, replace(SMALL, grid=(32, 32))], show=seen.append)
    assert table.rows == seen
    assert len(table.rows) == 2 * 2 * 2 * len(gpu.METHODS)
    ran = {row["method"] for row in table.rows if row["ms"]}
    assert {"quadtree", "reference", "linear"} <= ran
    assert all(row["timed by"] for row in table.rows)
    assert all(row["limit@"] > 0 for row in table.rows if row["method"] == "quadtree")
    table.save(tmp_path / "table.md")
    save_chart(replace(table, rows=[row for row in table.rows if row["ms"]]), tmp_path / "chart.png")


def test_methods_agree():
    case = Case((8, 8), (64,), heads=2, dim=16)  # every key is kept: quadtree attention's last level is dense
    tensors = case.tensors()
    expected = gpu.METHODS["reference"](case)(*tensors)
    torch.testing.assert_close(gpu.METHODS["quadtree"](case)(*tensors), expected, rtol=1e-4, atol=1e-5)
    dense = gpu.METHODS["flash"](case)(*tensors)
    full = torch.nn.functional.scaled_dot_product_attention(*(x.flatten(1, 2).transpose(1, 2) for x in tensors))
    torch.testing.assert_close(dense, full, rtol=1e-4, atol=1e-5)


def test_a_method_that_fails_says_why(monkeypatch):
    def broken(case):
        def method(*tensors):
            raise torch.OutOfMemoryError("out of memory: tried to allocate\nmuch")

        return method

    monkeypatch.setitem(gpu.METHODS, "linear", broken)
    rows = gpu.compare([SMALL], ["linear"], (torch.float32,)).rows
    assert [(row["ms"], row["MB"], row["timed by"]) for row in rows] == [
        (None, None, "out of memory: tried to allocate")
    ] * 2


def test_what_would_take_too_long_is_left_out():
    case = replace(SMALL, grid=(512, 512), batch=8, heads=8, dim=32)
    assert gpu._left_out(case, "flash", "forward")
    assert not gpu._left_out(replace(case, dtype=torch.bfloat16), "flash", "forward")
    assert gpu._left_out(case, "reference", "forward")
    assert not gpu._left_out(case, "quadtree", "both")


def test_unknown_method():
    with pytest.raises(ValueError, match="methods are sparse, expected some of quadtree"):
        gpu.compare([SMALL], ["sparse"])


def test_counts_are_those_of_the_tensors():
    case = Case((64, 64), (32, 16), batch=8, dtype=torch.bfloat16)
    rows = {(row["pass"], row["part"]): row for row in gpu_counts.counts(case)}
    tokens = 8 * 8 * 64 * 64  # of all heads and batch entries
    fine = rows["forward", "level 2"]
    # Each quad of queries gathers 4 children of 16 keys, 32 channels of 2 bytes each, and of their values.
    assert fine["MB, gathered"] * 1e6 == pytest.approx(tokens / 4 * 64 * 32 * 2 * 2)
    assert fine["GFLOP"] * 1e9 == pytest.approx(tokens * 64 * 32 * 2 * 2)
    # Query, key, value, output, log-sum; what comes from above in float32; the list.
    assert fine["MB, HBM"] * 1e6 == pytest.approx(tokens * (4 * 64 + 4) + tokens / 4 * (32 * 4 + 16 * 4))
    assert gpu_counts.dense_operations(case) == 4 * 64 * 4096**2 * 32
    _, sums = gpu_counts.predicted([case])
    assert [row["pass"] for row in sums.rows] == ["forward", "forward+backward"]
