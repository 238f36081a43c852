"""STTR: stereo by attention along rows, with full or quadtree attention."""

from .config import STTR_PRESETS, STTRConfig
from .model import STTR, StereoOutput

__all__ = ["STTR", "STTR_PRESETS", "STTRConfig", "StereoOutput"]
