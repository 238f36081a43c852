"""quadtree evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ..errors import InputError
from ..extras import install_command
from ..files import walk
from ..formats import CHART_SUFFIXES, IMAGE_SUFFIXES
from .app import DEVICE, OVERWRITE, QUIET, TOPK, app, note, numbers, typer
from .outputs import Outputs
from .progress import PairProgress


@app.command()
def evaluate(
    protocol: Annotated[str, typer.Argument(help="What is known about the pairs: homography, pose or stereo.")],
    source: Annotated[
        str,
        typer.Argument(
            help="Folder or list of pairs. For homography, also a folder of photographs, which are warped at random."
        ),
    ],
    models: Annotated[
        str,
        typer.Option(
            help="Models to compare, separated by commas: sift, names from quadtree models, files of weights."
        ),
    ] = "tiny,sift",
    layout: Annotated[
        str | None,
        typer.Option(
            help="Layout of the source: list, hpatches, synthetic, superglue, scannet, megadepth, colmap or stereo. Default: detected.",
            show_default=False,
        ),
    ] = None,
    max_size: Annotated[
        int | None,
        typer.Option(
            help="Shrink images until their longer side has this many pixels; Images of megadepth are enlarged to it too.",
            show_default="640, hpatches 1024, megadepth 832",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Use only the first N pairs.", show_default=False)] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Write the table to a .json, .csv or .md file. Figures of single pairs go to a .jsonl beside it, matches to a folder .predictions.",
        ),
    ] = None,
    curve: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Plot the share of pairs below each error to a .png, .svg or .pdf file."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the synthetic homographies.", show_default="0")] = None,
    estimators: Annotated[
        str | None,
        typer.Option(
            help="Pose estimators, separated by commas: opencv (as published), poselib (LO-RANSAC, columns lo_). Default: all that are installed.",
            show_default=False,
        ),
    ] = None,
    topk: TOPK = None,
    padding: Annotated[
        str,
        typer.Option(
            help="Pad images to squares of --max-size: none, masked or attended. The published outdoor network attends to the padding."
        ),
    ] = "none",
    align: Annotated[
        bool | None,
        typer.Option(
            help="If images differ in scale or rotation, align them and match a second time. Default: not for poses and HPatches, as published.",
            show_default=False,
        ),
    ] = None,
    refine: Annotated[
        bool | None,
        typer.Option(
            help="Move matches to a fraction of a pixel, as quadtree match does. By default not for poses and HPatches, as published.",
            show_default=False,
        ),
    ] = None,
    overwrite: OVERWRITE = False,
    quiet: QUIET = False,
    device: DEVICE = None,
) -> None:
    """Measure matchers on image pairs with known geometry: AUC of homographies, poses or single stereo matches.

    With --out, the matches of each pair are saved at once. So an interrupted run resumes, and other estimators need no network.
    """
    from ..evaluation.protocols import pose_estimators
    from ..evaluation.run import Evaluation, run
    from ..table import TABLE_SUFFIXES

    if protocol == "pose" and estimators is None and "poselib" not in pose_estimators(None):
        missing = f"{install_command('poses')} adds the columns of PoseLib's LO-RANSAC"
        note(f"only OpenCV's RANSAC is used; {missing}", quiet)

    names = [name.strip() for name in models.split(",")]
    if not all(names):
        raise InputError(f"--models is {models!r}, expected names or files with commas, such as tiny,sift")
    inputs = [source, *names]
    if Path(source).is_dir():
        inputs += [str(path) for path in walk(source) if path.suffix.lower() in IMAGE_SUFFIXES]
    with Outputs(inputs, overwrite=overwrite) as outputs, PairProgress(quiet) as progress:
        table_file = outputs.file("--out", out, TABLE_SUFFIXES)
        if table_file is not None:
            outputs.file("--out", table_file.with_suffix(".jsonl"), (".jsonl",))
        outputs.file("--curve", curve, CHART_SUFFIXES)
        evaluation = Evaluation(
            protocol=protocol,
            source=source,
            layout=layout,
            limit=limit,
            max_size=max_size,
            seed=seed,
            estimators=None if estimators is None else [name.strip() for name in estimators.split(",")],
            topk=numbers(topk, "--topk"),
            padding=padding,  # type: ignore[arg-type]  # which is checked
            align=align,
            refine=refine,
        )
        table = run(evaluation, names, out=out, curve=curve, device=device, progress=progress)
    print(table.text())
