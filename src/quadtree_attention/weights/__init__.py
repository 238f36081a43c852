"""Where weights come from: published checkpoints and their key maps."""

from .convert import convert_published
from .published import load_published, read_checkpoint

__all__ = ["convert_published", "load_published", "read_checkpoint"]
