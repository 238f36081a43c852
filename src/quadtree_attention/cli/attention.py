"""quadtree attention."""

from __future__ import annotations

from typing import Annotated

from ..errors import InputError
from ..formats import ATTENTION_SUFFIXES, PICTURE_SUFFIXES
from .app import DEVICE, OVERWRITE, app, typer
from .outputs import Outputs


@app.command()
def attention(
    image0: Annotated[str, typer.Argument(metavar="A", help="Image with the point.")],
    at: Annotated[str, typer.Option(metavar="X,Y", help="The point of A, in pixels of the file.")],
    image1: Annotated[
        str | None,
        typer.Argument(
            metavar="B",
            help="Second image, for a matcher; right image, for stereo. Without it: where A looks in itself.",
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(help="Name of a model of any task (see quadtree models), or path of a file of weights.")
    ] = "tiny",
    layer: Annotated[
        int | None,
        typer.Option(
            help="Number of the layer, from 1. Default: the last that looks into B; without B, the last with most levels.",
            show_default=False,
        ),
    ] = None,
    head: Annotated[
        int | None, typer.Option(help="Number of the head, from 1. Default: the mean of all.", show_default=False)
    ] = None,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="FILE", help="Write patches and scores to a .json or .npz file."),
    ] = None,
    picture: Annotated[
        str | None, typer.Option(metavar="FILE", help="Draw all levels to a .png, .jpg or .webp file.")
    ] = None,
    max_size: Annotated[
        int | None,
        typer.Option(
            help="For matchers and stereo: shrink images to this many pixels on the longer side. Default: as they match, 640 and 800.",
            show_default=False,
        ),
    ] = None,
    overwrite: OVERWRITE = False,
    device: DEVICE = None,
) -> None:
    """Show where a point looks: the patches that its attention compares and keeps, level by level."""
    x, y = _point(at)
    inputs = [image0, *([] if image1 is None else [image1]), model]
    with Outputs(inputs, overwrite=overwrite) as outputs:
        outputs.file("--out", out, ATTENTION_SUFFIXES)
        outputs.file("--picture", picture, PICTURE_SUFFIXES)
        from ..data.images import read_image
        from ..predict.attention import image_attention, load_for_attention

        pixels0 = read_image(image0)
        pixels1 = None if image1 is None else read_image(image1)
        seen = image_attention(load_for_attention(model, device=device), pixels0, pixels1, max_size=max_size)
        found = seen.at(x, y, layer=layer, head=head)
        if out is not None:
            found.save(out)
        if picture is not None:
            from ..viz.attention import draw_attention
            from ..viz.drawing import save_picture

            save_picture(draw_attention(pixels0, pixels1, found), picture)
    print(f"layer {found.layer} of {len(seen.layers)}, {found.name}, {found.heads}")
    for number, level in enumerate(found.levels, 1):
        total = level.grid[0] * level.grid[1]
        kept = "" if number == len(found.levels) else f", {(level.kept >= 0.5).sum()} kept"
        print(f"level {number}: looks at {len(level):,} of {total:,} patches{kept}")
    print(found.cost)


def _point(text: str) -> tuple[float, float]:
    try:
        x, y = (float(number) for number in text.split(","))
    except ValueError:
        raise InputError(f"--at is {text!r}, expected X,Y in pixels of A, such as 320,240") from None
    return x, y
