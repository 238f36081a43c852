"""quadtree stereo."""

from __future__ import annotations

import time
from typing import Annotated

from ..errors import InputError
from ..formats import DISPARITY_SUFFIXES, PICTURE_SUFFIXES
from .app import DEVICE, OVERWRITE, QUIET, app, typer
from .outputs import Outputs


@app.command()
def stereo(
    left: Annotated[str, typer.Argument(metavar="LEFT", help="Left image of a rectified pair.")],
    right: Annotated[str, typer.Argument(metavar="RIGHT", help="Right image, of the same size.")],
    model: Annotated[str, typer.Option(help="tiny, or a file of weights.")] = "tiny",
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Write the disparity: .npy, .pfm, or 16-bit .png of 256 times the pixels.",
        ),
    ] = None,
    picture: Annotated[str | None, typer.Option(metavar="FILE", help="Draw it: .png, .jpg or .webp.")] = None,
    points: Annotated[
        str | None, typer.Option(metavar="FILE.ply", help="Write a point cloud; needs --focal and --baseline.")
    ] = None,
    focal: Annotated[
        float | None, typer.Option(help="Focal length in pixels of the files.", show_default=False)
    ] = None,
    baseline: Annotated[
        float | None, typer.Option(help="Distance of the cameras; points have its unit.", show_default=False)
    ] = None,
    view: Annotated[str, typer.Option(help="Which image's disparity: left or right.")] = "left",
    max_size: Annotated[int, typer.Option(help="Shrink images until their longer side has this many pixels.")] = 800,
    overwrite: OVERWRITE = False,
    quiet: QUIET = False,
    device: DEVICE = None,
) -> None:
    """Disparity of a rectified pair: how far left each pixel of LEFT is in RIGHT, in pixels of the files."""
    start = time.perf_counter()
    if points is not None and (focal is None or baseline is None):
        raise InputError("--points needs --focal and --baseline: without them nobody knows how far away things are")
    if points is None and (focal is not None or baseline is not None):
        raise InputError("--focal and --baseline are for --points; add it, or leave them out")
    from ..data.images import read_image
    from ..predict.stereo import StereoMatcher, check_camera

    if focal is not None and baseline is not None:
        check_camera(focal, baseline)
    with Outputs((left, right, model), overwrite=overwrite) as outputs:
        outputs.file("--out", out, DISPARITY_SUFFIXES)
        outputs.file("--picture", picture, PICTURE_SUFFIXES)
        outputs.file("--points", points, (".ply",))
        images = [read_image(left), read_image(right)]
        matcher = StereoMatcher.from_pretrained(model, device=device)
        found = matcher.match(*images, max_size=max_size, view=view)  # type: ignore[arg-type]  # match checks view
        if out is not None:
            found.save(out)
        if picture is not None:
            from ..viz.disparity import draw_disparity
            from ..viz.drawing import save_picture

            save_picture(draw_disparity(found), picture)
        if points is not None and focal is not None and baseline is not None:
            found.save_points(points, images[view == "right"], focal, baseline)
    low, high = found.range
    print(
        f"disparity {low:.1f} to {high:.1f} pixels, {100 * (found.occlusion > 0.5).mean():.0f} % hidden, "
        f"{time.perf_counter() - start:.1f} s"
    )
