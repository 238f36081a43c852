"""`from_pretrained` of the networks. The loader lives in `weights`, above this room, and is reached by the package's public name for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Self


class FromPretrained:
    """Gives a network the class method `from_pretrained`."""

    kind: ClassVar[str]  # a name in `weights.kinds.KINDS`

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path = "tiny", **options: Any) -> Self:
        """Load a network with its weights, on the CPU, in eval mode and float32.

        Args:
            name_or_path: "tiny", the network of this kind that comes with the package; any name that `quadtree models` lists; the path of a
                file or of a folder of `save_pretrained`; or "hf-hub:OWNER/NAME".
            options: fields of the network's configuration to change that the weights do not depend on, such as ``topk=(32, 16)``.

        Raises:
            ValueError: an unknown name or option, weights that do not fit, or a network of another class.
            OSError: a file that is missing, or cannot be downloaded.
        """
        from .. import load

        model = load(name_or_path, cls.kind, options=options)
        if not isinstance(model, cls):
            found = type(model).__name__
            raise InputError(
                f"{name_or_path} is a {found}, expected a {cls.__name__}; {found}.from_pretrained loads it"
            )
        return model
