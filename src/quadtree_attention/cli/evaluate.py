"""quadtree evaluate."""

from __future__ import annotations

import sys
from typing import Annotated

from .app import app, typer


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
            help="Shrink images until their longer side has this many pixels.", show_default="640, megadepth 840"
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first pairs.", show_default=False)] = None,
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the table: .json, .csv or .md; single pairs go beside it.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of synthetic homographies.")] = 0,
) -> None:
    """Measure matchers on pairs with known geometry: AUC of homographies, of poses, or of stereo matches."""
    from ..tasks.matching.evaluation import run as evaluate_pairs

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
        seed=seed,
        progress=progress,
    )
    print(table.text())
