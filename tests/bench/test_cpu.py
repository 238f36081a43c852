import itertools

import pytest
import torch
from PIL import Image

from quadtree_attention.__main__ import main
from quadtree_attention.bench import cpu
from quadtree_attention.bench.cpu import METHODS, Case
from quadtree_attention.viz.chart import save_chart

SMALL = Case((16, 24), (4, 4), heads=2, dim=8)


def test_features_vary_smoothly():
    query, key, value = Case((64, 64), heads=2, dim=8).tensors()
    assert query.shape == key.shape == value.shape == (1, 64, 64, 2, 8)
    assert not torch.equal(query, key)
    step = (query[:, 1:] - query[:, :-1]).square().mean() / query.var()
    assert step < 0.2  # 2 for noise


def test_methods_compute_what_their_names_say():
    case = Case((8, 8), (64,), heads=2, dim=8)
    query, key, value = case.tensors()
    q, k, v = (x.flatten(1, 2).transpose(1, 2).double() for x in (query, key, value))  # [1, heads, N, dim]
    dense = ((q @ k.transpose(2, 3) / 8**0.5).softmax(-1) @ v).float()
    out = {name: make(case)(query, key, value) for name, make in METHODS.items()}
    torch.testing.assert_close(out["dense"], dense, rtol=1e-4, atol=1e-5)
    # The grid that keys are pooled to has 8x8 cells: here there is nothing to pool.
    torch.testing.assert_close(out["spatial reduction"], dense, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out["quadtree"], out["reference"], rtol=1e-4, atol=1e-5)
    fq, fk = (torch.nn.functional.elu(x) + 1 for x in (q, k))
    weight = fq @ fk.transpose(2, 3)
    torch.testing.assert_close(out["linear"], (weight / weight.sum(-1, keepdim=True) @ v).float(), rtol=1e-4, atol=1e-4)


def test_operations_are_those_of_a_loop():
    count = 0
    for _ in itertools.product(range(4), range(6), range(4 * 6)):  # coarsest: every token and every token
        count += 1
    for tokens, kept in ((8 * 12, 4), (16 * 24, 4)):
        for _ in range(tokens):
            count += 4 * kept
    product = 2 * 2 * 8  # a multiplication and an addition for each of 2 heads' 8 channels
    assert cpu.operations(SMALL, "forward") == count * product * 2
    assert cpu.operations(SMALL, "both") == count * product * 7


def test_times_of_each_method():
    took = cpu.times(SMALL, ["quadtree", "dense"], "both", repeats=2)
    assert list(took) == ["quadtree", "dense"]
    assert all(seconds > 0 for seconds in took.values())


def test_a_gradient_is_measured():
    seen = []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx, query, key, value):
            return query.clone()

        @staticmethod
        def backward(ctx, grad):
            seen.append(grad.shape)
            return grad, grad, grad

    cpu._step(Watched.apply, SMALL.tensors(grad=True), "both")
    assert seen == [(1, 16, 24, 2, 8)]


def test_memory_holds_the_output_at_least():
    case = Case((96, 96), (8, 8))
    used = cpu.memory(case, "quadtree", "forward")
    if used is None:
        pytest.skip("this system does not tell")
    output = 96 * 96 * 8 * 32 * 4
    assert output < used < 20 * output


def test_table_and_chart(tmp_path):
    table = cpu.compare([SMALL, Case((32, 32), (4, 4), 2, 8)], ["quadtree", "dense"], repeats=1, with_memory=False)
    assert [(row["tokens"], row["pass"], row["method"]) for row in table.rows] == list(
        itertools.product(("16x24", "32x32"), ("forward", "forward+backward"), ("quadtree", "dense"))
    )
    assert all(row["x dense"] == 1 for row in table.rows if row["method"] == "dense")
    assert all(0 < row["limit@"] < 1 for row in table.rows if row["method"] == "quadtree")
    save_chart(table, tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as image:
        assert image.size[0] > 500


def test_dense_is_left_out_where_it_is_hopeless():
    table = cpu.compare([SMALL], ["quadtree", "dense"], repeats=1, with_memory=False, dense_limit=100)
    assert {row["method"] for row in table.rows} == {"quadtree"}
    assert {row["x dense"] for row in table.rows} == {None}


def test_parts_add_up():
    rows = cpu.parts(SMALL, repeats=2).rows
    assert [row["part"] for row in rows if "selection" not in row["part"]] == [
        "averages and tree order", "coarsest level", "level 1", "level 2", "out of tree order", "sum",
    ]  # fmt: skip
    assert sum(row["part"] == "its selection" for row in rows) == 2
    assert rows[-1]["ms"] == pytest.approx(sum(row["ms"] for row in rows[:-1]))


def test_command(tmp_path, capsys):
    out, chart = tmp_path / "table.md", tmp_path / "chart.svg"
    arguments = [
        "--sizes",
        "8x8,16x16",
        "--topk",
        "4",
        "--methods",
        "quadtree,linear",
        "--repeats",
        "1",
        "--no-memory",
        "--parts",
    ]
    assert main(["bench", *arguments, "--out", str(out), "--chart", str(chart)]) == 0
    text = capsys.readouterr().out
    assert text.count("quadtree") == 4
    assert "averages and tree order" in text
    assert out.read_text().startswith("| tokens | topk | pass | method | ms |")
    assert "<svg" in chart.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "60"], "--sizes has '60', expected grids of at least 8x8"),
        (["--sizes", "4x60"], "--sizes has '4x60', expected grids of at least 8x8"),
        (["--sizes", "axb"], "--sizes has 'axb', expected grids of at least 8x8"),
        (["--topk", "many"], "--topk is 'many', expected whole numbers above 0 with commas, such as 32,16"),
        (["--methods", "sparse"], "methods are sparse, expected some of quadtree, reference, dense"),
        (["--variant", "c", "--sizes", "8x8"], "variant is 'c', expected 'a' or 'b'"),
        (["--out", "table.txt"], "table.txt: unknown suffix '.txt'"),
        (["--chart", "chart.bmp"], "chart.bmp: unknown suffix '.bmp'"),
    ],
)
def test_bad_options(arguments, message, capsys):
    assert main(["bench", "--no-memory", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
