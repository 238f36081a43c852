"""quadtree match."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

from ..errors import InputError
from ..formats import ANIMATION_SUFFIXES, MATCH_SUFFIXES, PICTURE_SUFFIXES
from .app import DEVICE, OVERWRITE, PRECISION, QUIET, TOPK, app, numbers, typer
from .outputs import Outputs

GEOMETRIES = ("none", "homography", "fundamental", "essential")
LINES, LAYOUTS = ("normal", "thin", "none"), ("beside", "above")


@app.command()
def match(
    image0: Annotated[str, typer.Argument(metavar="A", help="First image.")],
    image1: Annotated[str, typer.Argument(metavar="B", help="Second image. Its size may differ.")],
    model: Annotated[
        str, typer.Option(help="Name of a model (see quadtree models) or path of a file of weights.")
    ] = "tiny",
    out: Annotated[
        str | None, typer.Option("--out", "-o", metavar="FILE", help="Write the matches to a .npz, .json or .csv file.")
    ] = None,
    picture: Annotated[
        str | None, typer.Option(metavar="FILE", help="Draw the matches to a .png, .jpg or .webp file.")
    ] = None,
    inliers_only: Annotated[bool, typer.Option("--inliers-only", help="In the picture: leave outliers out.")] = False,
    top: Annotated[
        int | None,
        typer.Option(min=1, help="In the picture: draw only so many matches, the surest.", show_default=False),
    ] = None,
    lines: Annotated[
        str, typer.Option(help="In the picture: normal or thin lines, or none, for points alone.")
    ] = "normal",
    layout: Annotated[str, typer.Option(help="In the picture: images beside or above each other.")] = "beside",
    labels: Annotated[
        bool, typer.Option("--labels", help="In the picture: names of the files in their corners.")
    ] = False,
    animation: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Blend A into B laid over it, to a .gif or .webp file; needs --geometry homography.",
        ),
    ] = None,
    max_size: Annotated[
        int, typer.Option(help="Shrink images so that their longer side has at most this many pixels.")
    ] = 640,
    threshold: Annotated[
        float | None,
        typer.Option(help="Drop matches with a lower confidence, 0..1. Default: the model's own.", show_default=False),
    ] = None,
    geometry: Annotated[
        str, typer.Option(help=f"Fit a model to the matches and mark its inliers: {', '.join(GEOMETRIES)}.")
    ] = "none",
    intrinsics: Annotated[
        str | None,
        typer.Option(
            metavar="FX,FY,CX,CY",
            help="Camera intrinsics for --geometry essential. Four numbers for both cameras, or eight: four for A, then four for B.",
        ),
    ] = None,
    warped: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Draw A as B sees it to a .png, .jpg or .webp file. Needs --geometry homography."
        ),
    ] = None,
    align: Annotated[
        bool, typer.Option(help="If the images differ in scale or rotation, align them and match a second time.")
    ] = True,
    refine: Annotated[
        bool, typer.Option(help="Move matches to a fraction of a pixel, by aligning the patches around them.")
    ] = True,
    topk: TOPK = None,
    precision: PRECISION = "float32",
    overwrite: OVERWRITE = False,
    quiet: QUIET = False,
    device: DEVICE = None,
) -> None:
    """Match two images: find points of A in B. Coordinates are pixels of the files."""
    start = time.perf_counter()
    cameras = _check_geometry(geometry, intrinsics)
    if warped is not None and geometry != "homography":
        raise InputError(f"--warped needs --geometry homography, got --geometry {geometry}")
    kept = numbers(topk, "--topk")
    _check_picture(picture, inliers_only, top, lines, layout, labels, geometry)
    if animation is not None and geometry != "homography":
        raise InputError(f"--animation needs --geometry homography, got {geometry}: B is laid over A by it")
    with Outputs((image0, image1, model), overwrite=overwrite) as outputs:
        outputs.file("--out", out, MATCH_SUFFIXES)
        outputs.file("--picture", picture, PICTURE_SUFFIXES)
        outputs.file("--animation", animation, ANIMATION_SUFFIXES)
        outputs.file("--warped", warped, PICTURE_SUFFIXES)
        from ..data.images import fitted_size, read_image

        pixels0 = read_image(image0)
        fitted_size(pixels0.shape[:2], max_size, image0)
        pixels1 = read_image(image1)
        fitted_size(pixels1.shape[:2], max_size, image1)

        from ..predict.matching import Matcher

        options = {"precision": precision} | ({} if kept is None else {"topk": kept})
        matcher = Matcher.from_pretrained(model, device=device, **options)
        matches = matcher.match(pixels0, pixels1, max_size=max_size, threshold=threshold, align=align, refine=refine)
        found = None if geometry == "none" else matches.geometry(geometry, intrinsics=cameras)
        if out is not None:
            matches.save(out, found)
        if picture is not None:
            from ..viz.drawing import save_picture
            from ..viz.matches import draw_matches

            drawn = draw_matches(
                pixels0,
                pixels1,
                matches,
                None if found is None else found.inliers,
                outliers=not inliers_only,
                top=top,
                lines=lines,  # type: ignore[arg-type]  # checked above
                layout=layout,  # type: ignore[arg-type]
                labels=(Path(image0).name, Path(image1).name) if labels else None,
            )
            save_picture(drawn, picture)
        if animation is not None:
            from ..viz.animation import blend_frames, save_animation

            if found is None or found.model is None:
                raise InputError(
                    f"no homography fits the {len(matches)} matches, expected images of one plane; leave --animation out"
                )
            save_animation(blend_frames(pixels0, pixels1, found.model), animation)
        if warped is not None and found is not None:
            from ..viz.drawing import save_picture

            save_picture(found.warp(pixels0, pixels1.shape[:2]), warped)
    inliers = "" if found is None else f"{found.inliers.sum()} inliers ({geometry}), "
    print(f"{len(matches)} matches, {inliers}{time.perf_counter() - start:.1f} s")


def _check_picture(
    picture: str | None, inliers_only: bool, top: int | None, lines: str, layout: str, labels: bool, geometry: str
) -> None:
    """Make sure that options of the picture have one to be about, and values that there are."""
    for option, value, choices in (("--lines", lines, LINES), ("--layout", layout, LAYOUTS)):
        if value not in choices:
            raise InputError(f"{option} is {value!r}, expected one of {', '.join(choices)}")
    asked = {
        "--inliers-only": inliers_only,
        "--top": top is not None,
        "--lines": lines != LINES[0],
        "--layout": layout != LAYOUTS[0],
        "--labels": labels,
    }
    given = [option for option, there in asked.items() if there]
    if given and picture is None:
        raise InputError(f"{given[0]} is for --picture; add it, or leave {given[0]} out")
    if inliers_only and geometry == "none":
        raise InputError("--inliers-only needs --geometry, which tells inliers from outliers")


def _check_geometry(geometry: str, intrinsics: str | None) -> list[list[float]] | None:
    """Parse the intrinsics of both cameras to (fx, fy, cx, cy) each, or None."""
    if geometry not in GEOMETRIES:
        raise InputError(f"--geometry is {geometry!r}, expected one of {', '.join(GEOMETRIES)}")
    if geometry == "essential" and intrinsics is None:
        raise InputError("--geometry essential needs --intrinsics fx,fy,cx,cy (or eight numbers, of A and then of B)")
    if geometry != "essential" and intrinsics is not None:
        raise InputError(f"--intrinsics is for --geometry essential, got --geometry {geometry}; leave it out")
    if intrinsics is None:
        return None
    try:
        numbers = [float(number) for number in intrinsics.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (4, 8):
        raise InputError(f"--intrinsics is {intrinsics!r}, expected fx,fy,cx,cy or eight numbers, of A and then of B")
    return [numbers[:4], numbers[-4:]]
