"""quadtree classify."""

from __future__ import annotations

from typing import Annotated

from .app import DEVICE, PICTURE_SUFFIXES, app, check_outputs, typer

CLASSIFICATION_SUFFIXES = (".json", ".csv")


@app.command()
def classify(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Images of any size.")],
    model: Annotated[
        str, typer.Option(help="Name of a model, see quadtree models, one of timm's, or a file of weights.")
    ] = "classify_tiny",
    top: Annotated[int, typer.Option(min=1, help="How many classes of each image.")] = 5,
    out: Annotated[str | None, typer.Option(metavar="FILE", help="Write them: .json or .csv.")] = None,
    picture: Annotated[
        str | None, typer.Option(metavar="FILE", help="Draw a contact sheet: .png, .jpg or .webp.")
    ] = None,
    device: DEVICE = None,
) -> None:
    """Say what images show: the likeliest classes, with probabilities."""
    check_outputs((out, CLASSIFICATION_SUFFIXES), (picture, PICTURE_SUFFIXES), sources=images)
    from ..data.images import read_image

    for source in images:
        read_image(source)

    from ..predict.classification import Classifier, save_classifications

    classifier = Classifier.from_pretrained(model, device=device)
    found = []
    for source in images:
        found.append(classifier.classify(source, top=top))
        if len(images) > 1:
            print(source)
        for label, probability in zip(found[-1].labels, found[-1].probabilities, strict=True):
            print(f"{100 * probability:5.1f} %  {label}")
    if out is not None:
        save_classifications(images, found, out)
    if picture is not None:
        from ..viz.classification import draw_classifications
        from ..viz.drawing import save_picture

        save_picture(draw_classifications(images, found), picture)
