"""Counts the multiply-accumulates of a network."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode


def multiply_accumulates(model: nn.Module, *inputs: Any) -> dict[str, int]:
    """Count the multiply-accumulates of a forward pass, in evaluation mode, by the names of the modules; "" is the whole network.

    This counts convolutions and matrix products, including those of attention. Quadtree attention counts as its plain PyTorch backend computes it,
    for every pair of a query and a candidate key, over grids padded to whole trees. Nothing is computed: meta tensors run through a copy of the
    network.

    Args:
        model: the network, which is not changed; one made under ``torch.device("meta")`` needs no memory.
        inputs: of its forward pass; only the shapes of tensors matter.
    """
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if parametrize.is_parametrized(module):  # which meta tensors do not support
            owner = type(module)  # shared with the model, and about to lose its parametrizations
            module.__class__ = type(owner.__name__, owner.__bases__, dict(vars(owner)))
            parametrizations: Any = module.parametrizations  # a ModuleDict
            for name in list(parametrizations):
                parametrize.remove_parametrizations(module, name)
    model.to("meta")
    inputs = tuple(x.to("meta") if isinstance(x, Tensor) else x for x in inputs)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(*inputs)
    root = type(model).__name__
    by_module = {name: sum(operations.values()) // 2 for name, operations in counter.get_flop_counts().items()}
    whole = by_module.pop("Global")
    by_module.pop(root, None)
    return {"": whole, **{name.removeprefix(f"{root}."): count for name, count in by_module.items()}}
