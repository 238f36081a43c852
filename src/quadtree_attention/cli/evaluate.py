"""quadtree evaluate."""

from __future__ import annotations

import sys
from typing import Annotated

from .app import TOPK, app, numbers, typer


@app.command()
def evaluate(
    protocol: Annotated[str, typer.Argument(help="homography, pose or stereo: what is known of the pairs.")],
    source: Annotated[
        str, typer.Argument(help="Folder or list of pairs; a plain folder of photographs gives synthetic homographies.")
    ],
    models: Annotated[
        str, typer.Option(help="What to compare, with commas: sift, names of quadtree models, files of weights.")
    ] = "tiny,sift",
    layout: Annotated[
        str | None,
        typer.Option(
            help="list, hpatches, synthetic; superglue, scannet, megadepth; stereo. By default told from the source.",
            show_default=False,
        ),
    ] = None,
    max_size: Annotated[
        int | None,
        typer.Option(
            help="Shrink images until their longer side has this many pixels.", show_default="640, megadepth 832"
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first pairs.", show_default=False)] = None,
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the table: .json, .csv or .md; single pairs go beside it.")
    ] = None,
    curve: Annotated[
        str | None, typer.Option(metavar="FILE", help="Draw the share of pairs over their error: .png, .svg or .pdf.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of synthetic homographies.")] = 0,
    estimators: Annotated[
        str | None,
        typer.Option(
            help="Of poses, with commas: opencv (as published), poselib (LO-RANSAC, columns lo_). By default those installed.",
            show_default=False,
        ),
    ] = None,
    topk: TOPK = None,
    padding: Annotated[
        str,
        typer.Option(
            help="none; or pad images to squares of --max-size, masked or attended: the published outdoor network attends to padding."
        ),
    ] = "none",
    align: Annotated[
        bool | None,
        typer.Option(
            help="Match images that differ in scale or turn again, as quadtree match does. By default not for poses and HPatches, as published.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Measure matchers on pairs with known geometry: AUC of homographies, of poses, or of stereo matches.

    With --out every pair's figures are kept as they come, and a run that was cut off goes on where it was.
    """
    from ..tasks.matching.evaluation import run as evaluate_pairs
    from ..tasks.matching.protocols import pose_estimators

    if protocol == "pose" and estimators is None and "poselib" not in pose_estimators(None):
        missing = "pip install 'quadtree-attention[poses]' adds the columns of PoseLib's LO-RANSAC"
        print(f"quadtree: only OpenCV's RANSAC is used; {missing}", file=sys.stderr)

    def progress(done: int, pairs: int) -> None:
        print(f"\r{done}/{pairs} pairs", end="" if done < pairs else "\n", file=sys.stderr, flush=True)

    table = evaluate_pairs(
        protocol,
        source,
        models=models.split(","),
        layout=layout,
        max_size=max_size,
        limit=limit,
        out=out,
        curve=curve,
        seed=seed,
        estimators=None if estimators is None else estimators.split(","),
        topk=numbers(topk, "--topk"),
        padding=padding,
        align=align,
        progress=progress,
    )
    print(table.text())
