"""The base class of all results."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import torch


class Result:
    """A dataclass with numpy arrays among its fields."""

    def to_tensors(self, device: str | torch.device | None = None) -> dict[str, torch.Tensor]:
        """Copy the arrays to tensors, by the names of their fields, on ``device``, by default the CPU. Other fields are left out."""
        arrays: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {
            name: torch.from_numpy(np.array(value)).to(device)
            for name, value in arrays.items()
            if isinstance(value, np.ndarray)
        }
