"""Detectors: torchvision's RetinaNet and Mask R-CNN over any timm backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...extras import require
from .config import BACKBONES, DETECTORS, DetectorConfig, coco_detector_config, detector_config

if TYPE_CHECKING:
    from .model import MaskRCNN, RetinaNet

__all__ = ["BACKBONES", "DETECTORS", "DetectorConfig", "build_detector", "coco_detector_config", "detector_config"]


def build_detector(config: DetectorConfig) -> RetinaNet | MaskRCNN:
    """Build a network with random weights: `RetinaNet` or `MaskRCNN` of `models.detection.model`.

    Raises:
        ValueError: a backbone that timm does not know, or that lacks a map; options that do not fit.
        ImportError: torchvision is missing.
    """
    require("torchvision", "detect")
    from .model import MaskRCNN, RetinaNet

    return (RetinaNet if config.detector == "retinanet" else MaskRCNN)(config)
