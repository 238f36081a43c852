"""quadtree convert."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from .app import OVERWRITE, QUIET, app, typer
from .outputs import Outputs


@app.command()
def convert(
    checkpoint: Annotated[str, typer.Argument(help="A published checkpoint, or one of your own training.")],
    out: Annotated[str, typer.Argument(metavar="OUT.safetensors", help="File to write. Pass it to --model.")],
    architecture: Annotated[
        str | None,
        typer.Option(
            help="Architecture of a published matcher: indoor, outdoor, ... Default: detected from the weights.",
            show_default=False,
        ),
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Store parameters as float16, in half the space.")] = False,
    overwrite: OVERWRITE = False,
    quiet: QUIET = False,
) -> None:
    """Convert a checkpoint to a .safetensors file that also holds its configuration."""
    with Outputs([checkpoint], overwrite=overwrite) as outputs:
        outputs.file("OUT.safetensors", out, (".safetensors",))
        from ..weights.loading import convert as convert_weights

        model = convert_weights(checkpoint, out, architecture=architecture, half=half)
    print(f"{out}: {sum(p.numel() for p in model.parameters()):,} parameters, {Path(out).stat().st_size / 1e6:.1f} MB")
