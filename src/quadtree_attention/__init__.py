"""QuadTree Attention (Tang, Zhang, Zhu, Tan, ICLR 2022): attention for images at linear cost, and matching, stereo, classification, detection
and segmentation built on it.

The public names are loaded on first use (PEP 562), so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .models.loftr import LoFTR
    from .models.sttr import STTR
    from .nn import QuadtreeAttention, record_attention
    from .ops import quadtree_attention, token_pyramid
    from .predict.classification import Classification, Classifier
    from .predict.detection import Detections, Detector
    from .predict.matches import Geometry, Matches
    from .predict.matching import Matcher
    from .predict.segmentation import Segmentation, Segmenter
    from .predict.stereo import Stereo, StereoMatcher
    from .viz.matches import draw_matches
    from .weights import load

__version__ = "0.1.0"
__all__ = [
    "STTR",
    "Classification",
    "Classifier",
    "Detections",
    "Detector",
    "Geometry",
    "LoFTR",
    "Matcher",
    "Matches",
    "QuadtreeAttention",
    "Segmentation",
    "Segmenter",
    "Stereo",
    "StereoMatcher",
    "draw_matches",
    "load",
    "quadtree_attention",
    "record_attention",
    "token_pyramid",
]

_HOME = {
    "Classification": ".predict.classification",
    "Classifier": ".predict.classification",
    "Detections": ".predict.detection",
    "Detector": ".predict.detection",
    "Geometry": ".predict.matches",
    "LoFTR": ".models.loftr",
    "Matcher": ".predict.matching",
    "Matches": ".predict.matches",
    "QuadtreeAttention": ".nn",
    "STTR": ".models.sttr",
    "Segmentation": ".predict.segmentation",
    "Segmenter": ".predict.segmentation",
    "Stereo": ".predict.stereo",
    "StereoMatcher": ".predict.stereo",
    "draw_matches": ".viz.matches",
    "load": ".weights",
    "quadtree_attention": ".ops",
    "record_attention": ".nn",
    "token_pyramid": ".ops",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
