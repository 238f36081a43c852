"""LoFTR: detector-free matching of two images, with a choice of coarse attention."""

from .config import LOFTR_PRESETS, LoFTRConfig
from .model import Features, LoFTR

__all__ = ["LOFTR_PRESETS", "Features", "LoFTR", "LoFTRConfig"]
