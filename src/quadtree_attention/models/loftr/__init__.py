"""LoFTR: detector-free matching of two images, with its coarse attention by choice."""

from .config import LOFTR_PRESETS, LoFTRConfig
from .model import Features, LoFTR

__all__ = ["LOFTR_PRESETS", "Features", "LoFTR", "LoFTRConfig"]
