"""quadtree segment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from ..errors import InputError
from ..formats import MASK_SUFFIXES, PICTURE_SUFFIXES
from .app import DEVICE, app, typer
from .images import ImageFile, each_image, find_images, result_paths

if TYPE_CHECKING:
    import numpy as np


@app.command()
def segment(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Images of any size, and folders of them.")],
    model: Annotated[
        str, typer.Option(help="Name of a model, see quadtree models, or a file of weights.")
    ] = "segment_tiny",
    out: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|FOLDER", help="Write masks, .png with a palette: the number of the class of each pixel."
        ),
    ] = None,
    picture: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|FOLDER", help="Draw the classes over the image, with a legend: .png, .jpg or .webp."
        ),
    ] = None,
    device: DEVICE = None,
) -> int:
    """Say what each pixel of images shows. Prints the share of each class."""
    files = find_images(images)
    masks = result_paths(files, out, MASK_SUFFIXES) if out is not None else [None] * len(files)
    pictures = result_paths(files, picture, PICTURE_SUFFIXES) if picture is not None else [None] * len(files)
    if set(masks) & set(pictures) - {None}:
        raise InputError(f"--out and --picture are both {out}, expected another place for one of them")
    places = dict(zip(files, zip(masks, pictures, strict=True), strict=True))
    from ..predict.segmentation import Segmenter

    segmenter = Segmenter.from_pretrained(model, device=device)

    def work(file: ImageFile, image: np.ndarray) -> None:
        found = segmenter.segment(image)
        mask, drawing = places[file]
        if mask is not None:
            found.save(mask)
        if drawing is not None:
            from ..viz.drawing import save_picture
            from ..viz.segmentation import draw_segmentation

            save_picture(draw_segmentation(image, found), drawing)
        if len(files) > 1:
            print(file.path)
        for name, share in found.shares().items():
            print(f"{100 * share:5.1f} %  {name}")

    return each_image(files, work)
