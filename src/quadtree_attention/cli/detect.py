"""quadtree detect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from ..errors import InputError
from ..formats import DETECTION_SUFFIXES, PICTURE_SUFFIXES
from .app import DEVICE, app, check_outputs, typer
from .images import ImageFile, each_image, find_images, result_paths

if TYPE_CHECKING:
    import numpy as np


@app.command()
def detect(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Images of any size, and folders of them.")],
    model: Annotated[
        str, typer.Option(help="Name of a model, see quadtree models, or a file of weights.")
    ] = "detect_tiny",
    out: Annotated[
        str | None, typer.Option(metavar="FILE.json", help="Write boxes, and masks, in COCO's result format.")
    ] = None,
    picture: Annotated[
        str | None,
        typer.Option(metavar="FILE|FOLDER", help="Draw them: .png, .jpg or .webp of one image, or a folder for many."),
    ] = None,
    score: Annotated[float, typer.Option(min=0, max=1, help="The least score; 0.05 for average precision.")] = 0.3,
    annotations: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.json",
            help="COCO's file with the numbers of the images; by default a name of digits is one.",
            show_default=False,
        ),
    ] = None,
    device: DEVICE = None,
) -> int:
    """Find what is in images: boxes, with a Mask R-CNN also masks."""
    if annotations is not None and out is None:
        raise InputError("--annotations is for --out; add it, or leave --annotations out")
    files = find_images(images)
    check_outputs((out, DETECTION_SUFFIXES), sources=[str(file.path) for file in files] + [annotations or ""])
    drawn = None if picture is None else result_paths(files, picture, PICTURE_SUFFIXES)
    from ..predict.detection import Detector, image_numbers, save_detections

    numbers = None if annotations is None else image_numbers(annotations)
    detector = Detector.from_pretrained(model, device=device)
    entries: list[dict[str, Any]] = []

    def work(file: ImageFile, image: np.ndarray) -> None:
        number: int | str = int(file.path.stem) if file.path.stem.isdecimal() else str(file.name)
        if numbers is not None:
            if file.path.name not in numbers:
                raise InputError(f"{file.path} is not among the images of {annotations}")
            number = numbers[file.path.name]
        found = detector.detect(image, score=score)
        entries.extend(found.to_coco(number, detector.config.ids))
        if drawn is not None:
            from ..viz.detection import draw_detections
            from ..viz.drawing import save_picture

            save_picture(draw_detections(image, found), drawn[files.index(file)])
        counts = ", ".join(f"{count} {label}" for label, count in found.counts().items()) or "nothing"
        if len(files) > 1:
            print(f"{file.path}: {counts}")
            return
        print(counts)
        for label, value, (x0, y0, x1, y1) in zip(
            found.labels, found.scores, found.boxes.round().astype(int), strict=True
        ):
            print(f"{100 * value:5.1f} %  {label}  {x0}, {y0} to {x1}, {y1}")

    status = each_image(files, work)
    if out is not None:
        save_detections(entries, out)
    return status
