"""Weights: one file format, one table of kinds, one function to load and one to save."""

from ..models.checkpoint import read_checkpoint
from ..models.keys import convert_published
from .files import save
from .loading import load

__all__ = ["convert_published", "load", "read_checkpoint", "save"]
