"""quadtree detect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from ..errors import InputError
from ..formats import DETECTION_SUFFIXES, PICTURE_SUFFIXES
from .app import DEVICE, OVERWRITE, QUIET, app, note_default, typer
from .images import SKIP_EXISTING, ImageFile, each_image, find_images, left_to_do, result_paths
from .outputs import Outputs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np

DEFAULT = "detect_tiny"


@app.command()
def detect(
    images: Annotated[
        list[str],
        typer.Argument(metavar="IMAGE...", help="Images, folders of images, or patterns like '*.jpg'."),
    ],
    model: Annotated[
        str, typer.Option(help="Name of a model (see quadtree models) or path of a file of weights.")
    ] = DEFAULT,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="FILE.json", help="Write boxes and masks in COCO's result format."),
    ] = None,
    picture: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|FOLDER",
            help="Draw the detections to a .png, .jpg or .webp file, or to a folder for several images.",
        ),
    ] = None,
    score: Annotated[
        float,
        typer.Option(min=0, max=1, help="Drop detections with a lower score. Use 0.05 to measure average precision."),
    ] = 0.3,
    annotations: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.json",
            help="COCO annotation file with the image ids. Default: a file name of digits is its id.",
            show_default=False,
        ),
    ] = None,
    overwrite: OVERWRITE = False,
    skip_existing: SKIP_EXISTING = False,
    quiet: QUIET = False,
    device: DEVICE = None,
) -> int:
    """Detect objects: find boxes, and masks with a Mask R-CNN."""
    if annotations is not None and out is None:
        raise InputError("--annotations is for --out; add it, or leave --annotations out")
    if skip_existing and out is not None:
        raise InputError("--skip-existing is for results in folders, and --out is one file; leave one of them out")
    files = find_images(images)
    drawn = {} if picture is None else dict(zip(files, result_paths(files, picture, PICTURE_SUFFIXES), strict=True))
    files = left_to_do(files, [[drawn[file]] if drawn else [] for file in files], skip_existing, quiet)
    if not files:
        return 0
    inputs: list[str | Path] = [*(file.path for file in files), model, *([] if annotations is None else [annotations])]
    with Outputs(inputs, overwrite=overwrite) as outputs:
        results = outputs.file("--out", out, DETECTION_SUFFIXES)
        outputs.files("--picture", [drawn[file] for file in files if drawn], PICTURE_SUFFIXES)
        from ..predict.detection import Detector, image_numbers, save_detections

        numbers = _numbers(files, None if annotations is None else image_numbers(annotations), out is not None)
        detector = Detector.from_pretrained(model, device=device)
        note_default(DEFAULT, detector.config.labels, model, quiet)
        entries: list[dict[str, Any]] = []

        def work(file: ImageFile, image: np.ndarray) -> None:
            if file not in numbers:
                raise InputError(f"{file.path} is not among the images of {annotations}")
            found = detector.detect(image, score=score)
            if drawn:
                from ..viz.detection import draw_detections
                from ..viz.drawing import save_picture

                save_picture(draw_detections(image, found), drawn[file])
            entries.extend(found.to_coco(numbers[file], detector.config.ids, file.name.as_posix()))
            counts = ", ".join(f"{count} {label}" for label, count in found.counts().items()) or "nothing"
            if len(files) > 1:
                print(f"{file.path}: {counts}")
                return
            print(counts)
            for label, value, (x0, y0, x1, y1) in zip(
                found.labels, found.scores, found.boxes.round().astype(int), strict=True
            ):
                print(f"{100 * value:5.1f} %  {label}  {x0}, {y0} to {x1}, {y1}")

        def finish() -> None:
            if results is not None:
                save_detections(entries, results)

        return each_image(files, work, finish, quiet=quiet)


def _numbers(files: Sequence[ImageFile], known: dict[str, int] | None, needed: bool) -> dict[ImageFile, int | str]:
    """The image_id of each image: its number in the annotations, found by the longest matching end of its path; without annotations the digits of
    its name, or the name.

    Images that are not in the annotations are missing. Where numbers are needed, no two images may share one.
    """
    numbers: dict[ImageFile, int | str] = {}
    owners: dict[int | str, ImageFile] = {}
    for file in files:
        number: int | str | None
        if known is None:
            number = int(file.path.stem) if file.path.stem.isdecimal() else file.name.as_posix()
        else:
            parts = file.path.absolute().parts
            ends = (file.name.as_posix(), *("/".join(parts[n:]) for n in range(1, len(parts))))
            number = next((known[end] for end in ends if end in known), None)
        if number is None:
            continue
        other = owners.setdefault(number, file)
        if other is not file and needed:
            raise InputError(
                f"{other.path} and {file.path} would both be image {number} in --out; "
                + (
                    "give --annotations with the numbers of the images, or rename one"
                    if known is None
                    else "give one of them"
                )
            )
        numbers[file] = number
    return numbers
