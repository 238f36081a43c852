"""Multiply-accumulates of a network: counted, not measured."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode


def multiply_accumulates(model: nn.Module, *inputs: Any) -> dict[str, int]:
    """Multiply-accumulates of a forward pass, in evaluation mode, by the names of the modules; "" is the whole.

    Counted are convolutions and matrix products, those of attention included: of quadtree attention as its plain PyTorch backend computes them, for
    every pair of a query and a candidate key, over grids padded to whole trees. Nothing is computed: tensors without values run through a copy of
    the network.

    Args:
        model: left as it is; one made under ``torch.device("meta")`` needs no memory.
        inputs: of its forward pass; of tensors, the shapes matter alone.
    """
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if parametrize.is_parametrized(module):  # which tensors without values cannot do
            owner = type(module)  # shared with the model, and about to lose what it has for parametrizations
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
