"""quadtree rectify."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

from ..errors import InputError
from .app import DEVICE, OVERWRITE, app, typer
from .outputs import Outputs


@app.command()
def rectify(
    image0: Annotated[str, typer.Argument(metavar="A", help="One photograph.")],
    image1: Annotated[
        str, typer.Argument(metavar="B", help="Another one of the same scene, taken a step to either side.")
    ],
    out: Annotated[
        str,
        typer.Option("--out", "-o", metavar="FOLDER", help="Write left.png, right.png and calib.yml into this folder."),
    ],
    focal: Annotated[
        float | None,
        typer.Option(
            help="Focal length of both photographs in pixels. Default: found from the matches.", show_default=False
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(help="Name of a matcher (see quadtree models) or path of a file of weights.")
    ] = "tiny",
    max_size: Annotated[
        int, typer.Option(help="Match images shrunk so that their longer side has at most this many pixels.")
    ] = 640,
    overwrite: OVERWRITE = False,
    device: DEVICE = None,
) -> None:
    """Rectify two photographs, so that each point lies in the same row of both, for quadtree stereo."""
    start = time.perf_counter()
    if focal is not None and not 0 < focal < 1e6:
        raise InputError(f"--focal is {focal}, expected a number of pixels above 0")
    paths = {name: Path(out) / name for name in ("left.png", "right.png", "calib.yml")}
    with Outputs((image0, image1, model), overwrite=overwrite) as outputs:
        outputs.files("--out", paths.values(), (".png", ".yml"))
        from ..data.images import fitted_size, read_image

        pixels = [read_image(image) for image in (image0, image1)]
        for image, name in zip(pixels, (image0, image1), strict=True):
            fitted_size(image.shape[:2], max_size, name)

        from ..predict.matching import Matcher
        from ..predict.rectification import rectify as found_by
        from ..viz.drawing import save_picture

        matches = Matcher.from_pretrained(model, device=device).match(*pixels, max_size=max_size)
        sizes = [(image.shape[1], image.shape[0]) for image in pixels]
        found = found_by(
            matches.keypoints0, matches.keypoints1, sizes[0], sizes[1], focal, threshold=max(1.0, matches.scale)
        )
        for image, name in zip(found.warp(*pixels), ("left.png", "right.png"), strict=True):
            save_picture(image, paths[name])
        found.save_calibration(paths["calib.yml"])
    low, high = found.disparity
    print(
        f"{found.matches} matches, rows {found.rows:.2f} pixels apart, disparity {low:.0f} to {high:.0f} pixels, "
        f"{image1 if found.swapped else image0} is the left one, {time.perf_counter() - start:.1f} s"
    )
