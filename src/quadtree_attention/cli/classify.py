"""quadtree classify."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from ..formats import CLASSIFICATION_SUFFIXES, PICTURE_SUFFIXES
from .app import DEVICE, OVERWRITE, QUIET, app, note_default, typer
from .images import ImageFile, each_image, find_images
from .outputs import Outputs

if TYPE_CHECKING:
    import numpy as np

DEFAULT = "classify_tiny"


@app.command()
def classify(
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="Images, folders of images, or patterns like '*.jpg'."),
    ],
    model: Annotated[
        str, typer.Option(help="Name of a model (see quadtree models), a timm model, or path of a file of weights.")
    ] = DEFAULT,
    top: Annotated[int, typer.Option(min=1, help="Number of classes to print per image.")] = 5,
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="FILE", help="Write the results to a .json or .csv file.")
    ] = None,
    picture: Annotated[
        str | None, typer.Option(metavar="FILE", help="Draw a contact sheet to a .png, .jpg or .webp file.")
    ] = None,
    overwrite: OVERWRITE = False,
    quiet: QUIET = False,
    device: DEVICE = None,
) -> int:
    """Classify images: print the most likely classes and their probabilities."""
    files = find_images(images)
    with Outputs([file.path for file in files] + [model], overwrite=overwrite) as outputs:
        labels = outputs.file("--out", out, CLASSIFICATION_SUFFIXES)
        sheet = outputs.file("--picture", picture, PICTURE_SUFFIXES)
        from ..predict.classification import Classification, Classifier, save_classifications

        classifier = Classifier.from_pretrained(model, device=device)
        note_default(DEFAULT, classifier.config.labels, model, quiet)
        found: dict[str, Classification] = {}

        def work(file: ImageFile, image: np.ndarray) -> None:
            one = found[str(file.path)] = classifier.classify(image, top=top)
            if len(files) > 1:
                print(file.path)
            for label, probability in zip(one.labels, one.probabilities, strict=True):
                print(f"{100 * probability:5.1f} %  {label}")

        def finish() -> None:
            if labels is not None:
                save_classifications(list(found), list(found.values()), labels)
            if sheet is not None and found:
                from ..viz.classification import draw_classifications
                from ..viz.drawing import save_picture

                names = [str(file.name) for file in files if str(file.path) in found]
                save_picture(draw_classifications(list(found), list(found.values()), names=names), sheet)

        return each_image(files, work, finish, quiet=quiet)
