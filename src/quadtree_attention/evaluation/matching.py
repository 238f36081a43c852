"""Measure matchers on pairs with known geometry: homography, relative-pose and stereo protocols, SIFT beside them.

A matcher is any function (image0, image1) -> (keypoints0 [M, 2], keypoints1 [M, 2], confidence [M]) of uint8 RGB images
[H, W, 3]. All methods see the same images, shrunk to max_size, and the same robust estimators. Errors are in pixels of
the images as given (HPatches: of the resized images, as usual there).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import __version__
from ..data.matching.colmap import MODEL_PLACES
from ..data.matching.pairs import HomographyPair, Pair, PosePair, StereoPair
from ..errors import InputError
from ..extras import require
from ..files import check_output
from ..formats import CHART_SUFFIXES
from ..table import Table
from ..viz.chart import save_error_curves
from ..weights.registry import weights_identity
from . import lists, pose_sets
from .pair_log import PairLog
from .protocols import (
    ESTIMATORS,
    PROTOCOLS,
    MatchFunction,
    Row,
    find_matches,
    pose_error,
    pose_estimators,
    summarise_homography,
    summarise_pose,
    summarise_stereo,
    with_published,
)
from .synthetic import SyntheticHomographies

PADDINGS = ("none", "masked", "attended")


# ---- many pairs ----------------------------------------------------------------------------------


def evaluate_homography(matcher: MatchFunction, pairs: Iterable[HomographyPair], *, max_size: int = 640) -> Row:
    """Measure a matcher on pairs with known homographies -> see summarise_homography."""
    return summarise_homography(list(_rows(PROTOCOLS["homography"].judge, matcher, pairs, max_size)))


def evaluate_pose(
    matcher: MatchFunction,
    pairs: Iterable[PosePair],
    *,
    max_size: int = 640,
    estimators: Sequence[str] | None = ("opencv",),
) -> Row:
    """Measure a matcher on pairs with known relative poses, as published with LoFTR -> see summarise_pose.

    estimators: of "opencv" and "poselib"; None: those whose package is there.
    """
    judge = partial(PROTOCOLS["pose"].judge, estimators=pose_estimators(estimators))
    return summarise_pose(list(_rows(judge, matcher, pairs, max_size)))


def evaluate_stereo(matcher: MatchFunction, pairs: Iterable[StereoPair], *, max_size: int = 640) -> Row:
    """Measure a matcher on rectified pairs with known disparity -> see summarise_stereo."""
    return summarise_stereo(list(_rows(PROTOCOLS["stereo"].judge, matcher, pairs, max_size)))


def _rows(judge: Callable[..., Row], matcher: MatchFunction, pairs: Iterable[Pair], max_size: int) -> Iterator[Row]:
    for pair in pairs:
        found = find_matches(matcher, pair, max_size)
        yield {**judge(pair, found), "ms": found.ms}


# ---- matchers ------------------------------------------------------------------------------------


def sift_matcher(features: int = 4096, ratio: float = 0.8, contrast: float = 0.02) -> MatchFunction:
    """OpenCV's SIFT, mutual nearest neighbours and the ratio test; confidence is one minus the ratio.

    contrast: half of OpenCV's default, so that weakly textured images give features too.
    """
    cv2 = require("cv2", "vision")
    sift = cv2.SIFT_create(nfeatures=features, contrastThreshold=contrast, enable_precise_upscale=True)

    def match(image0: np.ndarray, image1: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        (kpts0, desc0), (kpts1, desc1) = (
            sift.detectAndCompute(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None) for image in (image0, image1)
        )
        if len(kpts0) < 2 or len(kpts1) < 2:
            return np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0)
        # squared distances [N0, N1]; rounding may leave them just below zero
        squared = (desc0**2).sum(1)[:, None] + (desc1**2).sum(1) - 2 * desc0 @ desc1.T
        two = np.argpartition(squared, 1, axis=1)[:, :2]
        best, second = np.sqrt(np.take_along_axis(squared, two, axis=1).clip(0)).T
        nearest = two[:, 0]
        ratios = best / np.maximum(second, 1e-6)
        kept = (squared.argmin(axis=0)[nearest] == np.arange(len(desc0))) & (ratios < ratio)
        points0 = np.array([k.pt for k in kpts0])[kept]
        points1 = np.array([k.pt for k in kpts1])[nearest[kept]]
        return points0, points1, 1 - ratios[kept]

    return match


def load_matcher(
    name: str,
    *,
    options: Mapping[str, Any] | None = None,
    padding: str = "none",
    pad_to: int | None = None,
    align: bool = False,
    refine: bool = False,
    device: str | None = None,
) -> MatchFunction:
    """A match function by name: "sift", or any name or path that Matcher.from_pretrained takes.

    options: fields of LoFTRConfig to change. padding: "masked" and "attended" pad both images to a square of pad_to
    pixels, as the published MegaDepth evaluation does; "attended" lets attention see the padding, as the published
    quadtree network does. align, refine: see Matcher.match. device: see Matcher. SIFT has none of these.
    """
    if name == "sift":
        return sift_matcher()
    from ..predict.matching import Matcher

    options = dict(options or {})
    if padding != "none":
        options["respect_masks"] = padding == "masked"
    pad_to = None if padding == "none" else pad_to
    matcher = Matcher.from_pretrained(name, device=device, **options)
    return match_function(matcher, pad_to=pad_to, align=align, refine=refine)


def match_function(
    matcher: Any, *, pad_to: int | None = None, align: bool = False, refine: bool = False
) -> MatchFunction:
    """What is measured of a `Matcher`: it matches the images as they are given to it, see load_matcher."""

    def match(image0: np.ndarray, image1: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        longest = max(*image0.shape[:2], *image1.shape[:2])
        found = matcher.match(image0, image1, max_size=longest, pad_to=pad_to, align=align, refine=refine)
        return found.keypoints0, found.keypoints1, found.confidence

    return match


# ---- a whole evaluation --------------------------------------------------------------------------


class Layout(NamedTuple):
    """How pairs are found in a folder or list, and how they are matched by default.

    max_size, multiple: see find_matches; extras: whether ``align`` and ``refine`` of Matcher.match are on, which published figures go without.
    """

    protocol: str
    read: Callable[..., Iterable[Pair]]
    max_size: int
    multiple: int | None = None
    extras: bool = True


LAYOUTS = {
    "list": Layout("homography", lists.homography_list, 640),
    # Resized to 480 on the shorter side by its protocol.
    "hpatches": Layout("homography", lists.hpatches, 1024, extras=False),
    "synthetic": Layout("homography", SyntheticHomographies, 640),
    "superglue": Layout("pose", lists.pose_list, 640, extras=False),
    "scannet": Layout("pose", pose_sets.scannet1500, 640, extras=False),
    "megadepth": Layout("pose", pose_sets.megadepth1500, 832, multiple=8, extras=False),
    "colmap": Layout("pose", pose_sets.colmap_pairs, 640, extras=False),
    "stereo": Layout("stereo", lists.stereo_list, 640),
}


def find_layout(protocol: str, source: str | Path) -> str:
    """The layout that a source has, by what is in it; see LAYOUTS."""
    source = Path(source)
    if protocol not in PROTOCOLS:
        raise InputError(f"protocol is {protocol!r}, expected {' or '.join(PROTOCOLS)}")
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist, expected a folder or list of pairs")
    if source.is_file():
        return {"homography": "list", "pose": "superglue", "stereo": "stereo"}[protocol]
    if protocol == "homography":
        return "hpatches" if any(p.is_dir() for p in source.glob("[iv]_*")) else "synthetic"
    if protocol == "pose":
        here = [source, *(p for p in source.iterdir() if p.is_dir())]
        if any((p / "test.npz").is_file() for p in [*here, source / "assets" / "scannet_test_1500"]):
            return "scannet"
        if any((source / place / f"cameras.{kind}").is_file() for place in MODEL_PLACES for kind in ("bin", "txt")):
            return "colmap"
        places = [*here, source / "assets" / "megadepth_test_1500_scene_info"]
        if any(p.is_dir() and any(p.glob("*.npz")) for p in places):
            return "megadepth"
        raise InputError(
            f"{source}: no pairs with poses found, expected ScanNet-1500 (test.npz), MegaDepth-1500 (.npz of scenes), a COLMAP model "
            "(sparse/), or a list as SuperGlue's instead of a folder"
        )
    raise InputError(f"{source} is a folder, expected a list for the protocol stereo: left right disparity [scale]")


def run(
    protocol: str,
    source: str | Path,
    *,
    models: Sequence[str] = ("tiny", "sift"),
    layout: str | None = None,
    max_size: int | None = None,
    limit: int | None = None,
    out: str | Path | None = None,
    curve: str | Path | None = None,
    seed: int | None = None,
    estimators: Sequence[str] | None = None,
    topk: Sequence[int] | None = None,
    padding: str = "none",
    align: bool | None = None,
    refine: bool | None = None,
    device: str | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> Table:
    """Measure models by a protocol on a folder or list of pairs, all on the same images.

    protocol: "homography", "pose" or "stereo". layout: a name of LAYOUTS; found from the source if None.
    models: "sift", or what Matcher.from_pretrained takes. max_size: images are shrunk to it, those of the layout
    "megadepth" enlarged too; None: 640, or what the layout is published with. limit: only the first pairs. out: .json,
    .csv or .md for the table; beside it every pair's figures go to a .jsonl, as they come: what a run that was cut off had
    done is not done again. curve: a picture of the share of pairs over their error. estimators: of poses, see
    pose_estimators. topk: of quadtree attention, in place of the models' own; padding: see load_matcher. align,
    refine: see Matcher.match; None: not for poses and HPatches, as published. seed: of the layout "synthetic"; None: 0. device: see
    Matcher. progress: called with (pairs done, pairs, those that this run measured) before the first and after each.

    A last row has what is published for the layout, where that is known.

    Raises ValueError, OSError and ImportError in one line for whatever is wrong with these or the files they name.
    """
    layout = layout or find_layout(protocol, source)
    if layout not in LAYOUTS or LAYOUTS[layout].protocol != protocol:
        fitting = " or ".join(name for name, known in LAYOUTS.items() if known.protocol == protocol)
        raise InputError(f"layout is {layout!r}, expected {fitting or 'another protocol'} for protocol {protocol!r}")
    if not models or len(set(models)) < len(models):
        raise InputError(
            f"models are {', '.join(models) or 'none'}, expected one or more, each once, such as tiny, sift"
        )
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}, expected 1 or more pairs")
    if padding not in PADDINGS:
        raise InputError(f"padding is {padding!r}, expected {' or '.join(PADDINGS)}")
    networks = [name for name in models if name != "sift"]
    for option, value in (
        ("topk", topk),
        ("padding", None if padding == "none" else padding),
        ("align", align),
        ("refine", refine),
        ("device", device),
    ):
        if value is not None and not networks:
            raise InputError(f"{option} is for networks, but models are {', '.join(models)}; leave it out")
    if seed is not None and layout != "synthetic":
        raise InputError(f"seed is for the layout synthetic, got {layout}; leave it out")
    if protocol != "pose" and estimators is not None:
        raise InputError(f"estimators are for the protocol pose, got {protocol}; leave them out")
    if curve is not None:
        if protocol == "stereo":
            raise InputError("a curve shows one error a pair, of homographies or poses; the protocol stereo has none")
        curve = check_output(curve, CHART_SUFFIXES)
        require("matplotlib", "bench")
    max_size = LAYOUTS[layout].max_size if max_size is None else max_size
    align = LAYOUTS[layout].extras if align is None else align
    refine = LAYOUTS[layout].extras if refine is None else refine
    settings: Row = {
        "version": __version__,
        "protocol": protocol,
        "source": str(Path(source).resolve()),
        "layout": layout,
    }
    settings |= {"max_size": max_size} | ({"seed": seed or 0} if layout == "synthetic" else {})
    settings |= {"topk": None if topk is None else list(topk), "padding": padding, "align": align, "refine": refine}
    judge = PROTOCOLS[protocol].judge
    names: tuple[str, ...] = ()
    if protocol == "pose":
        names = pose_estimators(estimators)
        judge, settings["estimators"] = partial(judge, estimators=names), list(names)
    pairs = LAYOUTS[layout].read(source, **({"seed": seed or 0} if layout == "synthetic" else {}))
    if curve is not None and isinstance(pairs, list):
        _refuse_input(curve, pairs)
    total = len(pairs) if limit is None else min(limit, len(pairs))  # type: ignore[arg-type]
    options = {} if topk is None else {"topk": tuple(topk)}
    pad_to = padded_side(max_size, LAYOUTS[layout].multiple)
    log = PairLog(out, settings, {name: weights_identity(name) for name in models})
    matchers = {
        name: load_matcher(
            name, options=options, padding=padding, pad_to=pad_to, align=align, refine=refine, device=device
        )
        for name in models
    }
    rows: dict[str, list[Row]] = {name: [] for name in models}
    fresh = 0
    if progress is not None:
        progress(0, total, fresh)
    for index, pair in enumerate(pairs):
        if index == total:
            break
        known = True
        for name, matcher in matchers.items():
            row = log.done.get((name, index))
            if row is None or row["pair"] != pair.name:
                found = find_matches(matcher, pair, max_size, LAYOUTS[layout].multiple)
                row = log.add({"model": name, "index": index, "pair": pair.name, "ms": found.ms, **judge(pair, found)})
                known = False
            rows[name].append(row)
        fresh += not known
        if progress is not None:
            progress(index + 1, total, fresh)
    summaries = [{"model": name, **PROTOCOLS[protocol].summarise(rows[name])} for name in models]
    table = Table(with_published(summaries, layout), {**settings, "pairs": total})
    if curve is not None:
        save_error_curves(_curves(protocol, rows, names), curve, degrees=protocol == "pose")
    log.finish(table)
    return table


def _refuse_input(path: Path, pairs: Iterable[Pair]) -> None:
    """Make sure that no image of the pairs is overwritten."""
    images = {image for pair in pairs for image in (pair.image0, pair.image1) if isinstance(image, str | Path)}
    if path.exists() and any(path.samefile(image) for image in images):
        raise InputError(f"curve is {path}, which is an image of the pairs, expected another name for it")


def padded_side(max_size: int, multiple: int | None) -> int:
    """Side of the squares that images of up to ``max_size`` pixels are padded to: as those, a multiple of what the layout asks for."""
    return max_size - max_size % (multiple or 1)


def _curves(protocol: str, rows: Mapping[str, Sequence[Row]], estimators: Sequence[str]) -> dict[str, list[float]]:
    """Line of the chart -> errors of the pairs."""
    if protocol == "homography":
        return {name: [row["corner_error"] for row in mine] for name, mine in rows.items()}
    return {
        name if estimator == "opencv" else f"{name}, {estimator}": [
            pose_error(row, ESTIMATORS[estimator][0]) for row in mine
        ]
        for name, mine in rows.items()
        for estimator in estimators
    }
