"""The operator. Knows tensors, nothing of images or networks."""

from .functional import quadtree_attention
from .tree import token_pyramid

__all__ = ["quadtree_attention", "token_pyramid"]
