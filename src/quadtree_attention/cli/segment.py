"""quadtree segment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from ..formats import MASK_SUFFIXES, PICTURE_SUFFIXES
from .app import DEVICE, OVERWRITE, QUIET, app, note_default, typer
from .images import SKIP_EXISTING, ImageFile, each_image, find_images, left_to_do, result_paths
from .outputs import Outputs

if TYPE_CHECKING:
    import numpy as np

DEFAULT = "segment_tiny"


@app.command()
def segment(
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="Images, folders of images, or patterns like '*.jpg'."),
    ],
    model: Annotated[
        str, typer.Option(help="Name of a model (see quadtree models) or path of a file of weights.")
    ] = DEFAULT,
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE|FOLDER",
            help="Write masks as .png with a palette; the value of a pixel is the number of its class.",
        ),
    ] = None,
    picture: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|FOLDER", help="Draw the classes over the image, with a legend, to a .png, .jpg or .webp file."
        ),
    ] = None,
    overwrite: OVERWRITE = False,
    skip_existing: SKIP_EXISTING = False,
    quiet: QUIET = False,
    device: DEVICE = None,
) -> int:
    """Segment images: assign a class to every pixel. Prints the share of each class."""
    files = find_images(images)
    masks = {} if out is None else dict(zip(files, result_paths(files, out, MASK_SUFFIXES), strict=True))
    pictures = {} if picture is None else dict(zip(files, result_paths(files, picture, PICTURE_SUFFIXES), strict=True))
    results = [[places[file] for places in (masks, pictures) if places] for file in files]
    files = left_to_do(files, results, skip_existing, quiet)
    if not files:
        return 0
    with Outputs([*(file.path for file in files), model], overwrite=overwrite) as outputs:
        outputs.files("--out", [masks[file] for file in files if masks], MASK_SUFFIXES)
        outputs.files("--picture", [pictures[file] for file in files if pictures], PICTURE_SUFFIXES)
        from ..predict.segmentation import Segmenter

        segmenter = Segmenter.from_pretrained(model, device=device)
        note_default(DEFAULT, segmenter.config.labels, model, quiet)

        def work(file: ImageFile, image: np.ndarray) -> None:
            found = segmenter.segment(image)
            if masks:
                found.save(masks[file])
            if pictures:
                from ..viz.drawing import save_picture
                from ..viz.segmentation import draw_segmentation

                save_picture(draw_segmentation(image, found), pictures[file])
            if len(files) > 1:
                print(file.path)
            for name, share in found.shares().items():
                print(f"{100 * share:5.1f} %  {name}")

        return each_image(files, work, quiet=quiet)
