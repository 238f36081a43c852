"""QuadTree Attention (Tang, Zhang, Zhu, Tan, ICLR 2022): attention for images at linear cost, and matching, stereo, classification, detection
and segmentation built on it.

The public names are loaded on first use (PEP 562), so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .nn import QuadtreeAttention, record_attention
    from .ops import quadtree_attention, token_pyramid
    from .predict.classification import Classifier
    from .predict.detection import Detector
    from .predict.matching import Matcher
    from .predict.segmentation import Segmenter
    from .predict.stereo import StereoMatcher

__version__ = "0.1.0"
__all__ = [
    "Classifier",
    "Detector",
    "Matcher",
    "QuadtreeAttention",
    "Segmenter",
    "StereoMatcher",
    "quadtree_attention",
    "record_attention",
    "token_pyramid",
]

_HOME = {
    "Classifier": ".predict.classification",
    "Detector": ".predict.detection",
    "Matcher": ".predict.matching",
    "QuadtreeAttention": ".nn",
    "Segmenter": ".predict.segmentation",
    "StereoMatcher": ".predict.stereo",
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
