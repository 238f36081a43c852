"""quadtree stereo."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ..errors import InputError
from ..formats import ANIMATION_SUFFIXES, DISPARITY_SUFFIXES, PICTURE_SUFFIXES
from .app import DEVICE, OVERWRITE, QUIET, app, note, typer
from .images import SKIP_EXISTING, ImageFile, each_image, find_images, left_to_do, result_paths
from .outputs import Outputs

if TYPE_CHECKING:
    import numpy as np


@app.command()
def stereo(
    left: Annotated[
        str,
        typer.Argument(
            metavar="LEFT",
            help="Left image of a rectified pair, or a folder of them; or a text file with 'left right' on each line, without RIGHT.",
        ),
    ],
    right: Annotated[
        str | None,
        typer.Argument(
            metavar="RIGHT",
            help="Right image, of the same size; or a folder of them, with the same names.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="stereo_tiny, or a file of weights.")] = "stereo_tiny",
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE|FOLDER",
            help="Write the disparity: .npy, .pfm, or 16-bit .png with 256 times the pixels; or a folder for several pairs.",
        ),
    ] = None,
    picture: Annotated[
        str | None,
        typer.Option(metavar="FILE|FOLDER", help="Draw the disparity: .png, .jpg or .webp; or a folder for several."),
    ] = None,
    turntable: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|FOLDER",
            help="Draw the scene turning: .gif or .webp; or a folder for many. Without a calibration, depths are in proportion only.",
        ),
    ] = None,
    points: Annotated[
        str | None,
        typer.Option(metavar="FILE.ply|FOLDER", help="Write a point cloud. Needs --calib, or --focal and --baseline."),
    ] = None,
    depth: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|FOLDER",
            help="Write the depth, in the formats of --out. Needs the same; in metres if the calibration is.",
        ),
    ] = None,
    calib: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Calibration file of Middlebury (calib.txt), KITTI, or OpenCV (YAML with P1, P2).",
            show_default=False,
        ),
    ] = None,
    focal: Annotated[
        float | None, typer.Option(help="Focal length in pixels of the files.", show_default=False)
    ] = None,
    baseline: Annotated[
        float | None,
        typer.Option(help="Distance between the cameras; sets the unit of points and depths.", show_default=False),
    ] = None,
    view: Annotated[str, typer.Option(help="The image that the disparity belongs to: left or right.")] = "left",
    max_size: Annotated[
        int,
        typer.Option(
            help="Shrink images so that their longer side has at most this many pixels, and twice as many for the last step."
        ),
    ] = 800,
    overwrite: OVERWRITE = False,
    skip_existing: SKIP_EXISTING = False,
    quiet: QUIET = False,
    device: DEVICE = None,
) -> int:
    """Find the disparity of rectified pairs: how far left each pixel of LEFT is in RIGHT, in pixels of the files."""
    start = time.perf_counter()
    spatial = points is not None or depth is not None
    turned = turntable is not None
    if calib is not None and (focal is not None or baseline is not None):
        raise InputError(
            "--calib already gives focal length and baseline; leave out --focal and --baseline, or --calib"
        )
    if spatial and calib is None and (focal is None or baseline is None):
        name = "--points" if points is not None else "--depth"
        raise InputError(f"{name} needs --calib, or --focal and --baseline: depth cannot be computed without them")
    if not (spatial or turned) and (calib is not None or focal is not None or baseline is not None):
        raise InputError(
            "--calib, --focal and --baseline are for --points, --depth and --turntable; add one, or leave them out"
        )
    if calib is None and (focal is None) != (baseline is None):
        raise InputError("--focal and --baseline go together; give both, or neither")
    pairs = _pairs(left, right)
    files = list(pairs)
    targets = (
        ("--out", out, DISPARITY_SUFFIXES),
        ("--picture", picture, PICTURE_SUFFIXES),
        ("--turntable", turntable, ANIMATION_SUFFIXES),
        ("--points", points, (".ply",)),
        ("--depth", depth, DISPARITY_SUFFIXES),
    )
    places = {
        option: dict(zip(files, result_paths(files, target, suffixes), strict=True))
        for option, target, suffixes in targets
        if target is not None
    }
    files = left_to_do(files, [[place[file] for place in places.values()] for file in files], skip_existing, quiet)
    if not files:
        return 0
    inputs: list[str | Path] = [
        *(path for file in files for path in (file.path, pairs[file])),
        model,
        *([] if calib is None else [calib]),
    ]
    with Outputs(inputs, overwrite=overwrite) as outputs:
        for option, _, suffixes in targets:
            if option in places:
                outputs.files(option, [places[option][file] for file in files], suffixes)
        from ..data.images import read_image
        from ..data.stereo.calibration import StereoCamera, read_calibration
        from ..predict.stereo import StereoMatcher

        camera = None if calib is None else read_calibration(calib)
        if focal is not None and baseline is not None:
            camera = StereoCamera(focal, baseline)
        if camera is not None and view == "right":
            camera = camera.of_right()
        matcher = StereoMatcher.from_pretrained(model, device=device)

        def work(file: ImageFile, image: np.ndarray) -> None:
            nonlocal start
            images = image, read_image(pairs[file])
            found = matcher.match(*images, max_size=max_size, view=view)  # type: ignore[arg-type]  # match checks view
            paths = {option: place[file] for option, place in places.items()}
            if "--out" in paths:
                found.save(paths["--out"])
            if "--picture" in paths:
                from ..viz.disparity import draw_disparity
                from ..viz.drawing import save_picture

                save_picture(draw_disparity(found), paths["--picture"])
            if "--turntable" in paths:
                from ..viz.animation import save_animation, turntable_frames

                save_animation(turntable_frames(found, images[view == "right"], camera), paths["--turntable"])
            if camera is not None and "--points" in paths:
                found.save_points(paths["--points"], images[view == "right"], camera)
            if camera is not None and "--depth" in paths:
                found.save_depth(paths["--depth"], camera)
            low, high = found.range
            now = time.perf_counter()
            print(
                f"{file.path}: " * (len(pairs) > 1) + f"disparity {low:.1f} to {high:.1f} pixels, "
                f"{100 * (found.occlusion > 0.5).mean():.0f} % hidden, {now - start:.1f} s"
            )
            start = now

        return each_image(files, work, quiet=quiet)


def _pairs(left: str, right: str | None) -> dict[ImageFile, Path]:
    """Find the right image of each left one.

    Raises:
        ValueError: a left image without a right one, or a right one without a left one; a malformed list.
        OSError: a file that does not exist.
    """
    if right is None:
        if Path(left).suffix.lower() != ".txt":
            raise InputError(
                f"RIGHT is missing, expected the right image of {left}; or a text file with 'left right' on each line"
            )
        return _listed(Path(left))
    lefts, rights = find_images([left]), find_images([right])
    if len(lefts) == len(rights) == 1:
        return {lefts[0]: rights[0].path}
    of_name = {image.name.with_suffix(""): image.path for image in rights}
    names = [image.name.with_suffix("") for image in lefts]
    if len(of_name) == len(rights) and len(set(names)) == len(lefts) and set(names) == of_name.keys():
        return {image: of_name[name] for image, name in zip(lefts, names, strict=True)}
    if len(lefts) == len(rights) and not Path(left).is_dir() and not Path(right).is_dir():  # patterns
        note(f"{len(lefts)} pairs in order, {lefts[0].path} with {rights[0].path} first")
        return {image: other.path for image, other in zip(lefts, rights, strict=True)}
    lost = [str(image.path) for image, name in zip(lefts, names, strict=True) if name not in of_name]
    lost += [str(path) for name, path in of_name.items() if name not in set(names)]
    example = f"; {lost[0]} has no other" if lost else ""
    raise InputError(
        f"{left} has {len(lefts)} images and {right} {len(rights)}, expected the same names in both, or a list{example}"
    )


def _listed(path: Path) -> dict[ImageFile, Path]:
    from ..data.lists import existing, lines_of

    pairs = []
    for where, words in lines_of(path):
        if len(words) != 2:
            raise InputError(f"{where}: {len(words)} entries, expected 'left right'; names with spaces in quotes")
        pairs.append(tuple(existing(name, path.parent, where) for name in words))
    if not pairs:
        raise InputError(f"{path} lists no pairs, expected 'left right' on each line")
    images = [os.path.abspath(first) for first, _ in pairs]  # noqa: PTH100 (links stay as they are named)
    shared = os.path.commonpath([os.path.dirname(image) for image in images])  # noqa: PTH120
    files = [ImageFile(first, Path(image).relative_to(shared)) for (first, _), image in zip(pairs, images, strict=True)]
    if len(set(files)) < len(files):
        raise InputError(f"{path} lists a left image twice, expected each once, because results are named after them")
    return {file: second for file, (_, second) in zip(files, pairs, strict=True)}
