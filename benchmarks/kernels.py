"""What Triton makes of the kernels of the "cuda" backend, without a GPU: registers, spills and shared memory of the compiled objects.

    python benchmarks/kernels.py                                   (every target, dtype and list length; takes many minutes)
    python benchmarks/kernels.py --targets sm_90 --dims 32 --dtypes bf16 --topk 32,16 --variants b
    python benchmarks/kernels.py --matching 128,256                (those of matching without the matrix, by channels)

The arguments are those of real calls: the backend runs on small CPU tensors, and each launch is compiled in place of being run. For NVIDIA's targets
cuobjdump, which comes with Triton, says how many registers and bytes of stack a thread of the compiled object has; for AMD's the assembly does.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # before Triton is imported: interpreted kernels cannot be compiled

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from quadtree_attention.ops import cuda, cuda_matching
from quadtree_attention.table import Table

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
TYPES = {
    torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32",
    torch.int32: "*i32", torch.int64: "*i64", torch.uint8: "*u8",
}  # fmt: skip
OPTIONS = ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion")


def launches(
    dim: int, dtype: torch.dtype, topk: tuple[int, ...], variant: str, masked: bool = False
) -> list[dict[str, Any]]:
    """Every launch of a forward and backward pass of ``len(topk) + 1`` levels in 2-D: kernel, level, arguments and constants."""
    seen = []

    def record(call, kernel, groups, *arguments, **constants):
        seen.append({"kernel": kernel, "level": call.level, "arguments": arguments, "constants": constants})

    launch, cuda._Level.launch = cuda._Level.launch, record
    try:
        sizes = [64 * 4**level for level in range(len(topk) + 1)]
        q, k, v = ([torch.zeros(1, 8, n, dim, dtype=dtype) for n in sizes] for _ in range(3))
        valid = [torch.ones(1, n, dtype=torch.bool) for n in sizes] if masked else []
        weights, last = torch.ones(len(sizes)), [*topk, 0]
        out, kept, share, lse = cuda.forward_op(q, k, v, valid, last, variant == "a", weights)
        for x in kept:
            x.zero_()
        cuda.backward_op(torch.zeros_like(out), q, k, v, valid, kept, share, lse, last, variant == "a", weights)
    finally:
        cuda._Level.launch = launch
    return seen


def matching_launches(channels: int) -> list[dict[str, Any]]:
    """Every launch that finds the confident pairs of two images: kernel, arguments and constants."""
    seen = []

    class Recorded:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: Any) -> Any:
            return lambda *arguments, **given: seen.append(self._launch(arguments, given))

        def _launch(self, arguments: tuple[Any, ...], given: dict[str, Any]) -> dict[str, Any]:
            names = self.kernel.arg_names[len(arguments) :]
            numbers = [given.pop(name) for name in names if name in given and name.islower()]
            return {"kernel": self.kernel, "arguments": (*arguments, *numbers), "constants": given}

    kernels = cuda_matching.log_sums, cuda_matching.list_pairs
    try:
        cuda_matching.log_sums, cuda_matching.list_pairs = map(Recorded, kernels)
        cuda_matching.confident_pairs(torch.zeros(64, channels), torch.zeros(64, channels), 0.2)
    finally:
        cuda_matching.log_sums, cuda_matching.list_pairs = kernels
    return [seen[0], seen[2]]  # the second one is the first with the images exchanged


def compiled(launch: dict[str, Any], target: str) -> dict[str, Any]:
    """Registers, spilled bytes and shared memory of one launch's kernel."""
    kernel, arguments = launch["kernel"], launch["arguments"]
    constants = {name: value for name, value in launch["constants"].items() if name not in OPTIONS}
    signature: dict[str, str] = {}
    attributes = {}
    for place, (name, x) in enumerate(zip(kernel.arg_names, arguments, strict=False)):
        if isinstance(x, torch.Tensor):
            signature[name] = TYPES[x.dtype]
            attributes[place,] = [["tt.divisibility", 16]]  # torch's memory is aligned
        else:
            signature[name] = "fp32" if isinstance(x, float) else "i32"
    signature.update(dict.fromkeys(constants, "constexpr"))
    source = ASTSource(kernel, signature, constants, attributes)
    options = {name: launch["constants"][name] for name in OPTIONS if name in launch["constants"]}
    if target.startswith("gfx"):
        options.pop("maxnreg", None)  # NVIDIA's, and not passed there
    result = triton.compile(source, target=TARGETS[target], options=options)
    read = _amd if target.startswith("gfx") else _nvidia
    return {**read(result), "shared": result.metadata.shared, "warps": options["num_warps"]}


def _nvidia(result: Any) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(result.asm["cubin"])
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def field(name: str) -> int:
        return int(re.search(rf"\b{name}:(\d+)", text)[1])

    # What a thread spills goes to its stack, of which these kernels have no other use.
    return {"registers": field("REG"), "spills": field("STACK") + field("LOCAL")}


def _amd(result: Any) -> dict[str, int]:
    text = result.asm["amdgcn"]

    def field(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", text)[1])

    return {"registers": field("vgpr_count"), "spills": field("vgpr_spill_count") + field("sgpr_spill_count")}


def report(
    targets: list[str], dims: list[int], dtypes: list[str], topks: list[tuple[int, ...]], variants: list[str]
) -> Table:
    """A row for each distinct kernel and target."""
    rows = []
    for target in targets:
        for dim in dims:
            for dtype in dtypes:
                for topk in topks:
                    for variant in variants:
                        for launch in launches(dim, DTYPES[dtype], topk, variant):
                            what = {
                                "target": target, "dtype": dtype, "dim": dim, "topk": ",".join(map(str, topk)), "variant": variant,
                                "level": str(launch["level"]), "kernel": launch["kernel"].__name__,
                            }  # fmt: skip
                            rows.append({**what, **compiled(launch, target)})
    return Table(rows, {"triton": triton.__version__, "torch": torch.__version__})


def matching_report(targets: list[str], channels: list[int]) -> Table:
    """A row for each kernel of matching and target."""
    rows = [
        {"target": target, "channels": count, "kernel": launch["kernel"].__name__, **compiled(launch, target)}
        for target in targets
        for count in channels
        for launch in matching_launches(count)
    ]
    return Table(rows, {"triton": triton.__version__, "torch": torch.__version__})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--dims", default="32,64")
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--topk", action="append", help="of one tree; may be given again")
    parser.add_argument("--variants", default="a,b")
    parser.add_argument("--matching", help="channels of features to match, with commas; then those kernels only")
    parser.add_argument("--out", type=Path, help="a .md, .json or .csv file")
    options = parser.parse_args()
    topks = [tuple(map(int, topk.split(","))) for topk in options.topk or ["8,8", "16,8", "32,16"]]
    targets = options.targets.split(",")
    if options.matching:
        table = matching_report(targets, [int(count) for count in options.matching.split(",")])
    else:
        dims = [int(d) for d in options.dims.split(",")]
        table = report(targets, dims, options.dtypes.split(","), topks, options.variants.split(","))
    if options.out:
        table.save(options.out)
    print(json.dumps(table.rows) if options.out is None and not sys.stdout.isatty() else table.text())


if __name__ == "__main__":
    main()
