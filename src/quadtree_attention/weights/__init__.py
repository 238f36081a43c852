"""Weights: one format of files, one table of kinds, one way in and one way out."""

from ..models.checkpoint import read_checkpoint
from ..models.keys import convert_published
from .files import save
from .loading import load

__all__ = ["convert_published", "load", "read_checkpoint", "save"]
