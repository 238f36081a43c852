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
        torch.zeros(1, device=device).tolist()  # meta, for one, holds no numbers
    # A name that is unknown, or of a device that this machine, or this build of torch, does not have.
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise InputError(f"device {str(device)!r} cannot be used, expected for example cpu or cuda: {reason}") from None
    return device
