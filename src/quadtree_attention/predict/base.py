"""The base class of the predictors: a network on a device, which is never changed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..weights.hub import HubMixin
from .device import check_device

if TYPE_CHECKING:
    from typing_extensions import Self


class Predictor(HubMixin):
    """Runs a network, in eval mode, without changing it.

    Args:
        model: the network. Its weights are shared, not copied: after a training step, the predictor uses the new ones.
        device: where to run it, such as "cpu" or "cuda"; by default where it is. Another device takes a copy of the weights.
    """

    def __init__(self, model: nn.Module, device: str | torch.device | None = None) -> None:
        there = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
        self.device = there if device is None else check_device(device)
        elsewhere = torch.empty(0, device=self.device).device != there
        own = copy.deepcopy(model).to(self.device) if elsewhere else with_shared_tensors(model)
        self.model = own.eval()

    @classmethod
    def _loaded(
        cls,
        name_or_path: str | Path,
        kind: str,
        device: str | torch.device | None,
        *,
        channels_last: bool = False,
        **options: Any,
    ) -> Self:
        """Load a predictor with its own network; with ``channels_last``, convolutions take half the time."""
        from ..weights import load

        checked = check_device(device)
        model = load(name_or_path, kind, options=options).to(checked)
        return cls(model.to(memory_format=torch.channels_last) if channels_last else model, checked)


def with_shared_tensors(model: nn.Module) -> nn.Module:
    """Copy a network, but not its tensors: modes and hooks are those of the copy, weights are shared."""
    tensors = {id(tensor): tensor for part in model.modules() for tensor in _tensors(part)}
    return copy.deepcopy(model, tensors)


def _tensors(part: nn.Module) -> list[Tensor]:
    found = [*part.parameters(recurse=False), *part.buffers(recurse=False), *vars(part).values()]
    return [one for one in found if isinstance(one, Tensor)]
