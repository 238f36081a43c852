"""Modules on the operator: `QuadtreeAttention` and, behind the same interface, the attentions it is compared with.

`record_attention` shows where it looks.
"""

from .quadtree import QuadtreeAttention
from .recording import AttentionCall, AttentionPath, PathLevel, record_attention
from .rivals import FullAttention, LinearAttention, SpatialReductionAttention

__all__ = [
    "AttentionCall",
    "AttentionPath",
    "FullAttention",
    "LinearAttention",
    "PathLevel",
    "QuadtreeAttention",
    "SpatialReductionAttention",
    "record_attention",
]
