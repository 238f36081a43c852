"""Where a network runs."""

from __future__ import annotations

import torch

from ..errors import InputError


def check_device(device: str | torch.device | None) -> torch.device:
    """The device of that name; None picks a CUDA GPU if there is one, else the CPU.

    Raises:
        ValueError: a name that is unknown, or of a device that this machine does not have.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # an unknown name; one that is not on this machine
        reason = str(error).splitlines()[0]
        raise InputError(f"device {str(device)!r} cannot be used, expected for example cpu or cuda: {reason}") from None
    return device
