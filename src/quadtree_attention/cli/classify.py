"""quadtree classify."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from ..formats import CLASSIFICATION_SUFFIXES, PICTURE_SUFFIXES
from .app import DEVICE, app, check_outputs, typer
from .images import ImageFile, each_image, find_images

if TYPE_CHECKING:
    import numpy as np


@app.command()
def classify(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Images of any size, and folders of them.")],
    model: Annotated[
        str, typer.Option(help="Name of a model, see quadtree models, one of timm's, or a file of weights.")
    ] = "classify_tiny",
    top: Annotated[int, typer.Option(min=1, help="How many classes of each image.")] = 5,
    out: Annotated[str | None, typer.Option(metavar="FILE", help="Write them: .json or .csv.")] = None,
    picture: Annotated[
        str | None, typer.Option(metavar="FILE", help="Draw a contact sheet: .png, .jpg or .webp.")
    ] = None,
    device: DEVICE = None,
) -> int:
    """Say what images show: the likeliest classes, with probabilities."""
    check_outputs((out, CLASSIFICATION_SUFFIXES), (picture, PICTURE_SUFFIXES), sources=images)
    files = find_images(images)
    from ..predict.classification import Classification, Classifier, save_classifications

    classifier = Classifier.from_pretrained(model, device=device)
    found: dict[str, Classification] = {}

    def work(file: ImageFile, image: np.ndarray) -> None:
        one = found[str(file.path)] = classifier.classify(image, top=top)
        if len(files) > 1:
            print(file.path)
        for label, probability in zip(one.labels, one.probabilities, strict=True):
            print(f"{100 * probability:5.1f} %  {label}")

    status = each_image(files, work)
    if out is not None:
        save_classifications(list(found), list(found.values()), out)
    if picture is not None and found:
        from ..viz.classification import draw_classifications
        from ..viz.drawing import save_picture

        save_picture(draw_classifications(list(found), list(found.values())), picture)
    return status
