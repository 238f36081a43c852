"""How right a disparity map is: pure functions of maps."""

from __future__ import annotations

import torch
from torch import Tensor

BAD = (1.0, 2.0, 3.0)  # pixels


def disparity_metrics(disparity: Tensor, truth: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """End-point error and shares of wrong pixels, over the valid ones of all maps together.

    Args:
        disparity, truth: ``[..., H, W]`` in pixels.
        valid: bool ``[..., H, W]``.

    Returns:
        ``epe`` in pixels; ``bad@1``, ``bad@2``, ``bad@3``: share of errors above so many pixels; ``d1``: share of errors above 3 pixels and
        5 % of the truth, as KITTI 2015 has it. NaN without valid pixels.
    """
    error = (disparity[valid].double() - truth[valid].double()).abs()
    result = {"epe": error.mean()}
    for threshold in BAD:
        result[f"bad@{threshold:g}"] = (error > threshold).double().mean()
    result["d1"] = ((error > 3) & (error > 0.05 * truth[valid].double())).double().mean()
    return result


def occlusion_iou(occlusion: Tensor, occluded: Tensor, valid: Tensor | None = None) -> Tensor:
    """Intersection over union of hidden and of seen pixels, added up, as STTR measures it.

    Args:
        occlusion: ``[..., H, W]`` in 0..1; above 0.5 is hidden.
        occluded: bool ``[..., H, W]``, the truth.
        valid: bool ``[..., H, W]``, pixels that count; None: all.
    """
    found = occlusion > 0.5
    valid = torch.ones_like(occluded) if valid is None else valid
    inter = (found & occluded & valid).sum() + (~found & ~occluded & valid).sum()
    union = ((found | occluded) & valid).sum() + ((~found | ~occluded) & valid).sum()
    return inter / union
