"""Where weights come from: published checkpoints and their key maps."""

from .convert import convert_published
from .published import read_checkpoint

__all__ = ["convert_published", "read_checkpoint"]
