"""What the command `quadtree` can do.

Results go to stdout, all else to stderr; mistakes are raised and become one line in `__main__`. Imports stand in the functions: they are most
of what a short command costs.
"""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path
from typing import Annotated, Any

from . import __version__
from .extras import require
from .files import check_output

typer = require("typer", "vision")

GEOMETRIES = ("none", "homography", "fundamental", "essential")
MATCH_SUFFIXES = (".npz", ".json", ".csv")
CLASSIFICATION_SUFFIXES = (".json", ".csv")
CHART_SUFFIXES = (".png", ".svg", ".pdf")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

app = typer.Typer(
    help="Match and classify images, and see depth, with quadtree attention.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


class UsageError(ValueError):
    """A command line that cannot be understood."""


def run(arguments: list[str]) -> None:
    """Run one command.

    Raises:
        ValueError, OSError, ImportError: a user's mistake, in one line.
    """
    try:
        status = app(args=arguments, prog_name="quadtree", standalone_mode=False)
    except Exception as error:
        if hasattr(error, "format_message"):  # the parser's, whichever version of it typer brings
            raise UsageError(f"{error.format_message().rstrip('.')}; see quadtree --help") from None
        raise
    if status == 130:  # how the parser reports an interrupt
        raise KeyboardInterrupt


def _version(asked: bool) -> None:
    if asked:
        print(f"quadtree-attention {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def match(
    image0: Annotated[str, typer.Argument(metavar="A", help="First image.")],
    image1: Annotated[str, typer.Argument(metavar="B", help="Second image; its size may be another.")],
    model: Annotated[str, typer.Option(help="Name of a model, see quadtree models, or a file of weights.")] = "tiny",
    out: Annotated[str | None, typer.Option(metavar="FILE", help="Write the matches: .npz, .json or .csv.")] = None,
    picture: Annotated[str | None, typer.Option(metavar="FILE", help="Draw them: .png, .jpg or .webp.")] = None,
    max_size: Annotated[int, typer.Option(help="Shrink images until their longer side has this many pixels.")] = 640,
    threshold: Annotated[
        float | None, typer.Option(help="Smallest confidence, 0..1; by default that of the model.", show_default=False)
    ] = None,
    geometry: Annotated[
        str, typer.Option(help=f"Keep apart the matches that fit one geometry: {', '.join(GEOMETRIES)}.")
    ] = "none",
    intrinsics: Annotated[
        str | None,
        typer.Option(
            metavar="FX,FY,CX,CY", help="For essential: of both cameras, or eight numbers, of A and then of B."
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Such as cpu or cuda; by default a CUDA GPU if there is one.", show_default=False)
    ] = None,
) -> None:
    """Match two images: points of A, and where they are in B, in pixels of the files."""
    start = time.perf_counter()
    cameras = _check_geometry(geometry, intrinsics)
    outputs = [
        check_output(path, suffixes)
        for path, suffixes in ((out, MATCH_SUFFIXES), (picture, PICTURE_SUFFIXES))
        if path is not None
    ]
    from .data.images import fitted_size, read_image

    images = []
    for source in (image0, image1):
        images.append(read_image(source))
        fitted_size(images[-1].shape[:2], max_size, source)
        if any(path.exists() and path.samefile(source) for path in outputs):
            raise ValueError(f"{source} would be overwritten by the result, expected another name for it")

    from .predict import Matcher

    matches = Matcher.from_pretrained(model, device=device).match(*images, max_size=max_size, threshold=threshold)
    found = None if geometry == "none" else matches.geometry(geometry, intrinsics=cameras)
    if out is not None:
        matches.save(out, found)
    if picture is not None:
        from .viz import draw_matches, save_picture

        save_picture(draw_matches(*images, matches, None if found is None else found.inliers), picture)
    inliers = "" if found is None else f"{found.inliers.sum()} inliers ({geometry}), "
    print(f"{len(matches)} matches, {inliers}{time.perf_counter() - start:.1f} s")


@app.command()
def classify(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Images of any size.")],
    model: Annotated[
        str, typer.Option(help="Name of a model, see quadtree models, one of timm's, or a file of weights.")
    ] = "classify_tiny",
    top: Annotated[int, typer.Option(min=1, help="How many classes of each image.")] = 5,
    out: Annotated[str | None, typer.Option(metavar="FILE", help="Write them: .json or .csv.")] = None,
    picture: Annotated[
        str | None, typer.Option(metavar="FILE", help="Draw a contact sheet: .png, .jpg or .webp.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Such as cpu or cuda; by default a CUDA GPU if there is one.", show_default=False)
    ] = None,
) -> None:
    """Say what images show: the likeliest classes, with probabilities."""
    outputs = [
        check_output(path, suffixes)
        for path, suffixes in ((out, CLASSIFICATION_SUFFIXES), (picture, PICTURE_SUFFIXES))
        if path is not None
    ]
    from .data.images import read_image

    for source in images:
        read_image(source)
        if any(path.exists() and path.samefile(source) for path in outputs):
            raise ValueError(f"{source} would be overwritten by the result, expected another name for it")

    from .predict import Classifier, save_classifications

    classifier = Classifier.from_pretrained(model, device=device)
    found = []
    for source in images:
        found.append(classifier.classify(source, top=top))
        if len(images) > 1:
            print(source)
        for label, probability in zip(found[-1].labels, found[-1].probabilities, strict=True):
            print(f"{100 * probability:5.1f} %  {label}")
    if out is not None:
        save_classifications(images, found, out)
    if picture is not None:
        from .viz import draw_classifications, save_picture

        save_picture(draw_classifications(images, found), picture)


@app.command()
def stereo(
    left: Annotated[str, typer.Argument(metavar="LEFT", help="Left image of a rectified pair.")],
    right: Annotated[str, typer.Argument(metavar="RIGHT", help="Right image, of the same size.")],
    model: Annotated[str, typer.Option(help="tiny, or a file of weights.")] = "tiny",
    out: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write the disparity: .npy, .pfm, or 16-bit .png of 256 times the pixels."),
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
    device: Annotated[
        str | None, typer.Option(help="Such as cpu or cuda; by default a CUDA GPU if there is one.", show_default=False)
    ] = None,
) -> None:
    """Disparity of a rectified pair: how far left each pixel of LEFT is in RIGHT, in pixels of the files."""
    start = time.perf_counter()
    if points is not None and (focal is None or baseline is None):
        raise ValueError("--points needs --focal and --baseline: without them nobody knows how far away things are")
    if points is None and (focal is not None or baseline is not None):
        raise ValueError("--focal and --baseline are for --points; add it, or leave them out")
    from .data.images import read_image
    from .predict_stereo import DISPARITY_SUFFIXES, StereoMatcher, check_camera

    if points is not None:
        check_camera(focal, baseline)
    asked = ((out, DISPARITY_SUFFIXES), (picture, PICTURE_SUFFIXES), (points, (".ply",)))
    outputs = [check_output(path, suffixes) for path, suffixes in asked if path is not None]
    images = []
    for source in (left, right):
        images.append(read_image(source))
        if any(path.exists() and path.samefile(source) for path in outputs):
            raise ValueError(f"{source} would be overwritten by the result, expected another name for it")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        found = StereoMatcher.from_pretrained(model, device=device).match(*images, max_size=max_size, view=view)
    for warning in caught:
        print(f"quadtree: {warning.message}", file=sys.stderr)
    if out is not None:
        found.save(out)
    if picture is not None:
        from .viz import draw_disparity, save_picture

        save_picture(draw_disparity(found), picture)
    if points is not None:
        found.save_points(points, images[view == "right"], focal, baseline)
    low, high = found.range
    print(
        f"disparity {low:.1f} to {high:.1f} pixels, {100 * (found.occlusion > 0.5).mean():.0f} % hidden, "
        f"{time.perf_counter() - start:.1f} s"
    )


@app.command()
def models() -> None:
    """List what --model can be: name, task, what for, size, licence, whether it is on this machine, and where it comes from."""
    from .weights.registry import PRETRAINED

    rows = [("name", "for", "what", "size", "licence", "here", "from")]
    for row in PRETRAINED.values():
        here = row.path.is_file()
        size = f"{row.path.stat().st_size / 1e6:.1f} MB" if here else f"about {row.megabytes:.0f} MB"
        rows.append((row.name, row.task, row.what, size, row.licence, "yes" if here else "no", row.source))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())


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
    from .weights.classifier import is_classifier, load_classifier, save_classifier
    from .weights.registry import load_matcher, save_model
    from .weights.stereo import is_stereo_file, load_stereo

    if is_stereo_file(Path(checkpoint)):
        model = load_stereo(Path(checkpoint))
        save_model(model, path, half=half)
    elif architecture is None and is_classifier(Path(checkpoint)):
        model, config = load_classifier(Path(checkpoint))
        save_classifier(model, config, path, half=half)
    else:
        model = load_matcher(Path(checkpoint), architecture=architecture)
        save_model(model, path, half=half)
    print(f"{path}: {sum(p.numel() for p in model.parameters()):,} parameters, {path.stat().st_size / 1e6:.1f} MB")


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
    from .tasks.matching.evaluation import run as evaluate_pairs

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


@app.command()
def bench(
    sizes: Annotated[str, typer.Option(help="Grids of tokens, height x width, with commas.")] = "32x32,60x80,128x128",
    topk: Annotated[str, typer.Option(help="Keys that each level but the last keeps, coarse to fine.")] = "32,16",
    variant: Annotated[str, typer.Option(help="Of quadtree attention: a or b.")] = "b",
    heads: Annotated[int, typer.Option(min=1)] = 8,
    dim: Annotated[int, typer.Option(min=1, help="Channels of a head.")] = 32,
    methods: Annotated[
        str, typer.Option(help="With commas: quadtree, reference, dense, linear, spatial reduction.")
    ] = "quadtree,dense,linear,spatial reduction",
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each; the median counts.")] = 5,
    memory: Annotated[bool, typer.Option(help="Measure memory too, in processes of their own.")] = True,
    parts: Annotated[bool, typer.Option(help="Where the time of quadtree attention goes, too.")] = False,
    out: Annotated[str | None, typer.Option(metavar="FILE", help="Write the table: .json, .csv or .md.")] = None,
    chart: Annotated[str | None, typer.Option(metavar="FILE", help="Draw it: .png, .svg or .pdf.")] = None,
) -> None:
    """Measure attentions on this machine's CPU: time, memory, and how both grow with the number of tokens."""
    from . import bench as benchmark
    from .table import TABLE_SUFFIXES

    if out is not None:
        check_output(out, TABLE_SUFFIXES)
    if chart is not None:
        require("matplotlib.figure", "bench")
        check_output(chart, CHART_SUFFIXES)
    cases = [benchmark.Case(_grid(size), _numbers("topk", topk), heads, dim, variant) for size in sizes.split(",")]
    table = benchmark.compare(cases, methods.split(","), repeats=repeats, with_memory=memory)
    print(table.text())
    if parts:
        for case in cases:
            print(f"\nforward, {case.grid[0]}x{case.grid[1]}\n{benchmark.parts(case, repeats).text()}")
    if out is not None:
        table.save(out)
    if chart is not None:
        from .viz import save_chart

        save_chart(table, chart)


def _grid(text: str) -> tuple[int, int]:
    sides = _numbers("sizes", text, "x")
    if len(sides) != 2 or min(sides) < 8:
        raise ValueError(f"--sizes has {text!r}, expected grids of at least 8x8 such as 60x80,128x128")
    return sides[0], sides[1]


def _numbers(name: str, text: str, separator: str = ",") -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(separator))
    except ValueError:
        example = "60x80,128x128" if separator == "x" else "32,16"
        raise ValueError(f"--{name} has {text!r}, expected whole numbers such as {example}") from None


_PASSED_ON: dict[str, Any] = {
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
}


@app.command(**_PASSED_ON)
def fit(context: typer.Context) -> None:
    """Train: --config recipes/NAME.yaml [overrides]. Lightning's own command line, see quadtree fit --help."""
    _lightning("fit", context.args)


@app.command(**_PASSED_ON)
def validate(context: typer.Context) -> None:
    """Validate a checkpoint: --config FILE.yaml --ckpt_path FILE.ckpt. Lightning's own command line."""
    _lightning("validate", context.args)


@app.command(**_PASSED_ON)
def test(context: typer.Context) -> None:
    """Test a checkpoint: --config FILE.yaml --ckpt_path FILE.ckpt. Lightning's own command line."""
    _lightning("test", context.args)


def _lightning(command: str, arguments: list[str]) -> None:
    cli = require("lightning.pytorch.cli", "train")
    jsonargparse = require("jsonargparse", "train")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "LightningCLI's args parameter")  # meant for scripts that parse twice
            cli.LightningCLI(args=[command, *arguments], parser_kwargs={"exit_on_error": False})
    except jsonargparse.ArgumentError as error:
        raise UsageError(f"{error}; see quadtree {command} --help") from None


def _check_geometry(geometry: str, intrinsics: str | None) -> list[list[float]] | None:
    """Intrinsics of both cameras as (fx, fy, cx, cy), or None."""
    if geometry not in GEOMETRIES:
        raise ValueError(f"--geometry is {geometry!r}, expected one of {', '.join(GEOMETRIES)}")
    if geometry == "essential" and intrinsics is None:
        raise ValueError("--geometry essential needs --intrinsics fx,fy,cx,cy (or eight numbers, of A and then of B)")
    if geometry != "essential" and intrinsics is not None:
        raise ValueError(f"--intrinsics is for --geometry essential, got --geometry {geometry}; leave it out")
    if intrinsics is None:
        return None
    try:
        numbers = [float(number) for number in intrinsics.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (4, 8):
        raise ValueError(f"--intrinsics is {intrinsics!r}, expected fx,fy,cx,cy or eight numbers, of A and then of B")
    return [numbers[:4], numbers[-4:]]
