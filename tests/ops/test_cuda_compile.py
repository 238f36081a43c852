"""The Triton kernels compiled ahead of time for GPUs that need not be there: nothing may spill. benchmarks/kernels.py compiles them all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kernels.py"


def compiled(*arguments):
    # In a process of its own: once Triton has been told to interpret its kernels, they cannot be compiled.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("target", "dim", "dtype", "topk", "variant"),
    [
        ("sm_90", 32, "bf16", "32,16", "b"),
        ("sm_90", 64, "fp16", "16,8", "a"),
        ("sm_90", 64, "fp32", "16,8", "b"),
        ("sm_80", 64, "bf16", "32,16", "b"),
        ("sm_80", 64, "fp32", "32,16", "a"),
        ("sm_80", 32, "fp32", "8,8", "b"),
        ("gfx942", 32, "fp16", "16,8", "b"),
        ("gfx942", 64, "bf16", "32,16", "a"),
    ],
)
def test_nothing_spills(target, dim, dtype, topk, variant):
    rows = compiled("--targets", target, "--dims", str(dim), "--dtypes", dtype, "--topk", topk, "--variants", variant)
    assert {(row["kernel"], row["level"]) for row in rows} == {
        (kernel, level) for kernel in ("forward", "backward_query", "backward_key") for level in "012"
    }
    for row in rows:
        assert 0 < row["registers"] <= 512
        assert row["spills"] == 0, row


def test_matching_does_not_spill():
    rows = compiled("--matching", "128")
    assert len(rows) == 3 * 2
    for row in rows:
        assert 0 < row["registers"] <= 512
        # On AMD's, masks of lanes are scalars, and some of the list's wait in vector registers.
        assert row["spills"] <= (0 if row["target"].startswith("sm_") else 64), row
