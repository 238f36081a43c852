"""quadtree convert."""

from __future__ import annotations

from typing import Annotated

from ..files import check_output
from .app import app, typer


@app.command()
def convert(
    checkpoint: Annotated[str, typer.Argument(help="Published .ckpt or .pth, or .ckpt of our training.")],
    out: Annotated[str, typer.Argument(metavar="OUT.safetensors", help="File to write; --model takes it.")],
    architecture: Annotated[
        str | None,
        typer.Option(
            help="Of published matchers: indoor, outdoor, ...; by default told from the weights.", show_default=False
        ),
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Store parameters as float16: half the size.")] = False,
) -> None:
    """Convert a checkpoint to a .safetensors file that holds its configuration too."""
    path = check_output(out, (".safetensors",))
    from ..weights.checkpoints import convert_checkpoint

    model = convert_checkpoint(checkpoint, path, architecture=architecture, half=half)
    print(f"{path}: {sum(p.numel() for p in model.parameters()):,} parameters, {path.stat().st_size / 1e6:.1f} MB")
