"""quadtree match-folder."""

from __future__ import annotations

from typing import Annotated

from ..errors import InputError
from .app import DEVICE, OVERWRITE, PRECISION, QUIET, TOPK, app, note, numbers, typer
from .outputs import Outputs, remember
from .progress import PairProgress


@app.command()
def match_folder(
    folder: Annotated[str, typer.Argument(help="Folder of images. Subfolders are searched too.")],
    out: Annotated[
        str,
        typer.Option(
            "--out", "-o", metavar="FILE", help="database.db for COLMAP, with verified matches, or matches.h5 for hloc."
        ),
    ],
    pairs: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Text file with two image names per line, relative to the folder. Default: all pairs.",
            show_default=False,
        ),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Where to write the keypoints for hloc. Default: features.h5 beside --out.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(help="Name of a model (see quadtree models) or path of a file of weights.")
    ] = "tiny",
    max_size: Annotated[
        int, typer.Option(help="Shrink images so that their longer side has at most this many pixels.")
    ] = 640,
    threshold: Annotated[
        float | None,
        typer.Option(help="Drop matches with a lower confidence, 0..1. Default: the model's own.", show_default=False),
    ] = None,
    radius: Annotated[
        float,
        typer.Option(help="Merge points of an image that are closer than this, in pixels of the image as matched."),
    ] = 1.0,
    cameras: Annotated[
        str,
        typer.Option(help="Which images share a camera in COLMAP: auto (from EXIF), single, per-folder or per-image."),
    ] = "auto",
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
) -> int:
    """Match all images of a folder, for structure from motion with COLMAP or hloc.

    An interrupted run resumes if you repeat the same command. Images that cannot be read are reported and skipped; the exit status is then 1.
    """
    from pathlib import Path

    from ..data.lists import image_pairs
    from ..files import list_photographs
    from ..predict.colmap import sqlite_files
    from ..predict.folder import SUFFIXES, all_pairs, match_folder
    from ..predict.matching import Matcher
    from ..weights.registry import weights_identity

    kept = numbers(topk, "--topk")
    options = {"precision": precision} | ({} if kept is None else {"topk": kept})
    if pairs is None:
        names = [path.relative_to(folder).as_posix() for path in list_photographs(Path(folder))]
        chosen = all_pairs(names)
    else:
        chosen = image_pairs(pairs, folder)
        names = list(dict.fromkeys(name for pair in chosen for name in pair))

    inputs: list[str | Path] = [pairs or folder, model, *(Path(folder) / name for name in names)]
    with Outputs(inputs, overwrite=overwrite) as outputs, PairProgress(quiet) as progress:
        path = outputs.file("--out", out, SUFFIXES)
        if path is not None and path.suffix.lower() == ".h5":
            outputs.file("--features", features or path.with_name("features.h5"), (".h5",))
        elif path is not None and not overwrite and any(file.stat().st_size for file in sqlite_files(path)):
            raise InputError(
                f"{path} is in use, or a killed process left changes beside it ({sqlite_files(path)[0].name}); "
                "choose another name for --out, or add --overwrite to replace it"
            )
        found = match_folder(
            folder,
            chosen,
            out,
            matcher=lambda: Matcher.from_pretrained(model, device=device, **options),
            identity=lambda: {"model": weights_identity(model), "topk": kept, "precision": precision},
            max_size=max_size,
            threshold=threshold,
            align=align,
            refine=refine,
            radius=radius,
            features=features,
            cameras=cameras,
            progress=progress,
            overwrite=overwrite,
            written=remember,
        )
    for line in found.broken:
        note(f"left out: {line}")
    verified = "" if found.verified is None else f", {found.verified} of them verified"
    files = " and ".join(str(path) for path in found.files)
    pairs_matches = f"{found.pairs} pair{'s' * (found.pairs != 1)}, {found.matches} match{'es' * (found.matches != 1)}"
    print(f"{files}: {found.images} images, {pairs_matches}{verified}")
    return 1 if found.broken else 0
