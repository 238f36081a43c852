"""Random calls of the operator's CPU kernels against the reference: ``python -m tests.fuzz.operator --count 10000 --seed 0``."""

import argparse
import random
from typing import Any

import torch
from torch import Tensor

from quadtree_attention import quadtree_attention

TOLERANCE = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}  # of numbers around 1


def random_call(seed: int) -> tuple[list[Tensor], dict[str, Any]]:
    """Query, key and value, and the operator's options."""
    choose, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    axes = choose.randint(1, 3)
    most = {1: 40, 2: 12, 3: 5}[axes]
    grid, key_grid = ([choose.randint(1, most) for _ in range(axes)] for _ in range(2))
    batch, heads = choose.choice([0, 1, 1, 2, 3]), choose.randint(1, 3)
    dim, dim_v = (choose.choice([1, 2, 3, 5, 8, 16, 32]) for _ in range(2))
    # Which keys are kept hangs on the last bit where two score alike: float64 takes part in selection, others keep all.
    dtype = choose.choice([torch.float64, torch.float64, torch.float32, torch.float16, torch.bfloat16])
    levels = choose.randint(1, 4)
    topk = [choose.randint(1, 24) if dtype == torch.float64 else 10**6 for _ in range(levels - 1)]
    variant = choose.choice("ab")

    def make(shape: list[int], last: int) -> Tensor:
        x = torch.randn(batch, *shape, heads, last, generator=generator, dtype=torch.float64).to(dtype)
        return x.transpose(1, -2).contiguous().transpose(1, -2) if choose.random() < 0.3 else x

    options: dict[str, Any] = dict(levels=levels, topk=topk, variant=variant)
    for name, shape in (("query_mask", grid), ("key_mask", key_grid)):
        if choose.random() < 0.4:
            options[name] = torch.rand(batch, *shape, generator=generator) < choose.choice([0.0, 0.3, 0.9])
    if variant == "b" and choose.random() < 0.5:
        options["level_weights"] = torch.randn(levels, generator=generator, dtype=torch.float64).to(dtype)
    return [make(grid, dim), make(key_grid, dim), make(key_grid, dim_v)], options


def check(seed: int) -> None:
    """Raise AssertionError unless both backends give the same output, and for one call in four the same gradients."""
    inputs, options = random_call(seed)
    results = []
    for backend in ("reference", "cpu"):
        leaves = [x.detach().requires_grad_(seed % 4 == 0) for x in inputs]
        out = quadtree_attention(*leaves, **options, backend=backend)
        gradients = torch.autograd.grad(out.sin().sum(), leaves) if seed % 4 == 0 else ()
        results.append((out.detach(), *gradients))
    tolerance = TOLERANCE[inputs[0].dtype]
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance, msg=lambda text: f"seed {seed}: {text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    failed = 0
    for seed in range(arguments.seed, arguments.seed + arguments.count):
        try:
            check(seed)
        except AssertionError as problem:
            failed += 1
            print(str(problem).splitlines()[0], flush=True)
    print(f"{arguments.count} calls from seed {arguments.seed}: {failed} differ from the reference")


if __name__ == "__main__":
    main()
