"""quadtree convert."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ..files import check_output
from .app import app, typer


@app.command()
def convert(
    checkpoint: Annotated[str, typer.Argument(help="Published .ckpt or .pth, or .ckpt of our training.")],
    out: Annotated[str, typer.Argument(metavar="OUT.safetensors", help="File to write; --model takes it.")],
    architecture: Annotated[
        str | None,
        typer.Option(
            help="For published files: indoor, outdoor, ...; by default told from the weights.", show_default=False
        ),
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Store parameters as float16: half the size.")] = False,
) -> None:
    """Convert a checkpoint to a .safetensors file that holds its configuration too."""
    path = check_output(out, (".safetensors",))
    from ..weights.classification import is_classifier, load_classifier, save_classifier
    from ..weights.detection import is_detector, load_detector, save_detector
    from ..weights.matching import load_matcher
    from ..weights.segmentation import is_segmenter, load_segmenter, save_segmenter
    from ..weights.stereo import is_stereo_file, load_stereo
    from ..weights.storage import save_model

    if is_stereo_file(Path(checkpoint)):
        model = load_stereo(Path(checkpoint))
        save_model(model, path, half=half)
    elif architecture is None and is_detector(Path(checkpoint)):
        model, config = load_detector(Path(checkpoint))
        save_detector(model, config, path, half=half)
    elif architecture is None and is_segmenter(Path(checkpoint)):
        model = load_segmenter(Path(checkpoint))
        save_segmenter(model, path, half=half)
    elif architecture is None and is_classifier(Path(checkpoint)):
        model, config = load_classifier(Path(checkpoint))
        save_classifier(model, config, path, half=half)
    else:
        model = load_matcher(Path(checkpoint), architecture=architecture)
        save_model(model, path, half=half)
    print(f"{path}: {sum(p.numel() for p in model.parameters()):,} parameters, {path.stat().st_size / 1e6:.1f} MB")
