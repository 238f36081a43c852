"""Modules on the operator: `QuadtreeAttention` and, behind the same interface, the attentions it is compared with."""

from .quadtree import QuadtreeAttention
from .rivals import FullAttention, LinearAttention, SpatialReductionAttention

__all__ = ["FullAttention", "LinearAttention", "QuadtreeAttention", "SpatialReductionAttention"]
