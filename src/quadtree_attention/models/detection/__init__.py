"""Detectors: torchvision's RetinaNet and Mask R-CNN over any backbone of timm's."""

from .config import BACKBONES, DETECTORS, DetectorConfig, coco_detector, detector

__all__ = ["BACKBONES", "DETECTORS", "DetectorConfig", "coco_detector", "detector"]
