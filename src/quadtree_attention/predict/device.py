"""Chooses the device that a network runs on."""

from __future__ import annotations

import torch

from ..errors import InputError


def check_device(device: str | torch.device | None) -> torch.device:
    """Check a device by its name; None picks a CUDA GPU if there is one, else the CPU.

    Raises:
        ValueError: an unknown device, or one that this machine does not have.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(device)
    except RuntimeError:
        raise InputError(f"device {device!r} is unknown, expected for example cpu, cuda or cuda:1") from None
    try:
        torch.zeros(1, device=device).tolist()  # the device "meta", for one, holds no numbers
    # This machine, or this build of torch, does not have it.
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise InputError(f"device {str(device)!r} cannot be used, expected for example cpu or cuda: {reason}") from None
    return device
