"""Measure matchers on pairs with known geometry: homography, relative-pose and stereo protocols, SIFT beside them.

A matcher is any function (image0, image1) -> (keypoints0 [M, 2], keypoints1 [M, 2], confidence [M]) of uint8 RGB images
[H, W, 3]. All methods see the same images, shrunk to max_size, and the same robust estimators. Errors are in pixels of
the images as given (HPatches: of the resized images, as usual there).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...data import pairs as layouts
from ...data.images import read_image, resize_longest
from ...data.pairs import HomographyPair, Pair, PosePair, StereoPair, resize_matrix
from ...data.synthetic import SyntheticHomographies
from ...extras import require
from ...files import check_output
from ...table import TABLE_SUFFIXES, Table
from . import metrics

MatchFunction = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
Row = dict[str, Any]
PIXELS = (3, 5, 10)  # thresholds of the homography and stereo AUC
DEGREES = (5, 10, 20)  # thresholds of the pose AUC
RIGHT = 3.0  # pixels within which a match is right


# ---- one pair ------------------------------------------------------------------------------------


class Found(NamedTuple):
    """Matches in the pixels of a pair's geometry, and how they came about."""

    kpts0: np.ndarray  # [M, 2]
    kpts1: np.ndarray  # [M, 2]
    ms: float
    pixel: float  # pixels of the geometry in one pixel of the image as matched, the larger of both images
    size0: tuple[int, int]  # (height, width) of image 0 in pixels of the geometry


def find_matches(matcher: MatchFunction, pair: Pair, max_size: int) -> Found:
    """Resize and turn a pair's images, match them, and map the keypoints back."""
    image0, to_matched0, size0 = _prepare(pair.image0, pair.size0, pair.turns0, max_size)
    image1, to_matched1, _ = _prepare(pair.image1, pair.size1, pair.turns1, max_size)
    start = time.perf_counter()
    kpts0, kpts1, _ = matcher(image0, image1)
    ms = 1000 * (time.perf_counter() - start)
    scales = [np.sqrt(abs(np.linalg.det(A[:2, :2]))) for A in (to_matched0, to_matched1)]
    back0, back1 = np.linalg.inv(to_matched0), np.linalg.inv(to_matched1)
    return Found(
        metrics.warp_points(back0, kpts0), metrics.warp_points(back1, kpts1), ms, float(1 / min(scales)), size0
    )


def judge_homography(pair: Pair, found: Found) -> Row:
    """Corner error of the homography found by MAGSAC, and how many matches are within 3 pixels of the true one."""
    assert isinstance(pair, HomographyPair)
    H, _ = metrics.estimate_homography(found.kpts0, found.kpts1, threshold=3.0 * found.pixel)
    error = metrics.homography_corner_error(H, pair.homography, found.size0)
    distances = metrics.reprojection_errors(found.kpts0, found.kpts1, pair.homography)
    return {"corner_error": error, "right": int((distances <= RIGHT).sum()), "matches": len(distances)}


def judge_pose(pair: Pair, found: Found) -> Row:
    """Angular errors of the pose found by RANSAC at 0.5 pixels, and how many matches keep to the epipolar geometry."""
    assert isinstance(pair, PosePair)
    pose = metrics.estimate_pose(found.kpts0, found.kpts1, pair.K0, pair.K1)
    error = metrics.PoseError(np.inf, np.inf)
    if pose is not None:
        error = metrics.relative_pose_error(pair.T_0to1, pose.R, pose.t)
    E = metrics.essential_matrix(pair.T_0to1)
    distances = metrics.symmetric_epipolar_distance(found.kpts0, found.kpts1, E, pair.K0, pair.K1)
    return {
        "rotation_error": error.rotation,
        "translation_error": error.translation,
        "right_5e-4": int((distances < 5e-4).sum()),
        "right_1e-4": int((distances < 1e-4).sum()),
        "inliers": 0 if pose is None else int(pose.inliers.sum()),
        "matches": len(distances),
    }


def judge_stereo(pair: Pair, found: Found) -> Row:
    """Errors of the matches whose left keypoint has a known disparity; the others are not counted."""
    assert isinstance(pair, StereoPair)
    disparity = pair.read_disparity()
    if disparity.shape != found.size0:
        raise ValueError(
            f"{pair.name}: disparity is {disparity.shape[1]}x{disparity.shape[0]}, expected the left image's "
            f"{found.size0[1]}x{found.size0[0]}"
        )
    errors = metrics.disparity_errors(found.kpts0, found.kpts1, disparity)
    errors = errors[~np.isnan(errors)]
    areas = metrics.error_auc(errors, PIXELS)
    return {**areas, "right": int((errors <= RIGHT).sum()), "judged": len(errors), "matches": len(found.kpts0)}


def _prepare(
    image: layouts.Image, size: layouts.Size | None, turns: int, max_size: int
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """The image to match, the [3, 3] map of geometry pixels to its pixels, and (height, width) of the geometry."""
    name = str(image) if isinstance(image, str | Path) else "image"
    pixels = read_image(image)
    if size is not None and size != pixels.shape[1::-1]:
        shrinks = size[0] < pixels.shape[1]
        cv2 = require("cv2", "vision")
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    height, width = pixels.shape[:2]
    A = {  # np.rot90 turns counterclockwise: the right edge comes to the top
        0: np.eye(3),
        1: np.array([[0.0, 1, 0], [-1, 0, width - 1], [0, 0, 1]]),
        2: np.array([[-1.0, 0, width - 1], [0, -1, height - 1], [0, 0, 1]]),
        3: np.array([[0.0, -1, height - 1], [1, 0, 0], [0, 0, 1]]),
    }[turns % 4]
    turned = np.ascontiguousarray(np.rot90(pixels, turns))
    shrunk, _ = resize_longest(turned, max_size, name)
    return shrunk, resize_matrix(turned.shape[1::-1], shrunk.shape[1::-1]) @ A, (height, width)


# ---- all pairs -----------------------------------------------------------------------------------


def summarise_homography(rows: Sequence[Row]) -> Row:
    """AUC of the corner error at 3, 5, 10 pixels, mean share of right matches, mean numbers, median ms."""
    areas = metrics.error_auc([row["corner_error"] for row in rows], PIXELS)
    return {**areas, "right@3px": _share(rows, "right", "matches"), **_counts(rows, "right", "matches")}


def summarise_pose(rows: Sequence[Row]) -> Row:
    """AUC of the larger of both angular errors at 5, 10, 20 degrees, epipolar precision, mean number, median ms."""
    areas = metrics.error_auc([max(row["rotation_error"], row["translation_error"]) for row in rows], DEGREES)
    precision = {f"prec@{t}": _share(rows, f"right_{t}", "matches") for t in ("5e-4", "1e-4")}
    return {**areas, **precision, **_counts(rows, "inliers", "matches")}


def summarise_stereo(rows: Sequence[Row]) -> Row:
    """Means over pairs: AUC of the match error at 3, 5, 10 pixels, share of right matches, numbers; median ms."""
    areas = {f"auc@{t}": float(np.mean([row[f"auc@{t}"] for row in rows])) for t in PIXELS}
    return {**areas, "right@3px": _share(rows, "right", "judged"), **_counts(rows, "right", "judged", "matches")}


def _share(rows: Sequence[Row], part: str, whole: str) -> float:
    return float(np.mean([row[part] / row[whole] if row[whole] else 0.0 for row in rows]))


def _counts(rows: Sequence[Row], *names: str) -> Row:
    means = {name: float(np.mean([row[name] for row in rows])) for name in names}
    return {**means, "ms": float(np.median([row["ms"] for row in rows])), "pairs": len(rows)}


class Protocol(NamedTuple):
    judge: Callable[[Pair, Found], Row]
    summarise: Callable[[Sequence[Row]], Row]


PROTOCOLS = {
    "homography": Protocol(judge_homography, summarise_homography),
    "pose": Protocol(judge_pose, summarise_pose),
    "stereo": Protocol(judge_stereo, summarise_stereo),
}


def evaluate_homography(matcher: MatchFunction, pairs: Iterable[HomographyPair], *, max_size: int = 640) -> Row:
    """Measure a matcher on pairs with known homographies -> see summarise_homography."""
    return summarise_homography(list(_rows("homography", matcher, pairs, max_size)))


def evaluate_pose(matcher: MatchFunction, pairs: Iterable[PosePair], *, max_size: int = 640) -> Row:
    """Measure a matcher on pairs with known relative poses, as published with LoFTR -> see summarise_pose."""
    return summarise_pose(list(_rows("pose", matcher, pairs, max_size)))


def evaluate_stereo(matcher: MatchFunction, pairs: Iterable[StereoPair], *, max_size: int = 640) -> Row:
    """Measure a matcher on rectified pairs with known disparity -> see summarise_stereo."""
    return summarise_stereo(list(_rows("stereo", matcher, pairs, max_size)))


def _rows(protocol: str, matcher: MatchFunction, pairs: Iterable[Pair], max_size: int) -> Iterator[Row]:
    for pair in pairs:
        found = find_matches(matcher, pair, max_size)
        yield {**PROTOCOLS[protocol].judge(pair, found), "ms": found.ms}


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


def load_matcher(name: str) -> MatchFunction:
    """A match function by name: "sift", or any name or path that Matcher.from_pretrained takes."""
    if name == "sift":
        return sift_matcher()
    from ...predict.matching import Matcher

    model = Matcher.from_pretrained(name)

    def match(image0: np.ndarray, image1: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        found = model.match(image0, image1, max_size=max(*image0.shape[:2], *image1.shape[:2]))
        return found.keypoints0, found.keypoints1, found.confidence

    return match


# ---- a whole evaluation --------------------------------------------------------------------------


class Layout(NamedTuple):
    """How pairs are found in a folder or list."""

    protocol: str
    read: Callable[..., Iterable[Pair]]
    max_size: int


LAYOUTS = {
    "list": Layout("homography", layouts.homography_list, 640),
    "hpatches": Layout("homography", layouts.hpatches, 1024),  # resized to 480 on the shorter side by its protocol
    "synthetic": Layout("homography", SyntheticHomographies, 640),
    "superglue": Layout("pose", layouts.pose_list, 640),
    "scannet": Layout("pose", layouts.scannet1500, 640),
    "megadepth": Layout("pose", layouts.megadepth1500, 840),
    "stereo": Layout("stereo", layouts.stereo_list, 640),
}


def find_layout(protocol: str, source: str | Path) -> str:
    """The layout that a source has, by what is in it; see LAYOUTS."""
    source = Path(source)
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol is {protocol!r}, expected {' or '.join(PROTOCOLS)}")
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist, expected a folder or list of pairs")
    if source.is_file():
        return {"homography": "list", "pose": "superglue", "stereo": "stereo"}[protocol]
    if protocol == "homography":
        return "hpatches" if any(p.is_dir() for p in source.glob("[iv]_*")) else "synthetic"
    if protocol == "pose":
        here = [source, *(p for p in source.iterdir() if p.is_dir())]
        scannet = any((p / "test.npz").is_file() for p in [*here, source / "assets" / "scannet_test_1500"])
        return "scannet" if scannet else "megadepth"
    raise ValueError(f"{source} is a folder, expected a list for the protocol stereo: left right disparity [scale]")


def run(
    protocol: str,
    source: str | Path,
    *,
    models: Sequence[str] = ("tiny", "sift"),
    layout: str | None = None,
    max_size: int | None = None,
    limit: int | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Table:
    """Measure models by a protocol on a folder or list of pairs, all on the same images.

    protocol: "homography", "pose" or "stereo". layout: a name of LAYOUTS; found from the source if None.
    models: "sift", or what Matcher.from_pretrained takes. max_size: images are shrunk to it; None: 640, or what the
    layout is published with. limit: only the first pairs. out: .json, .csv or .md for the table; beside it every pair's
    figures go to a .jsonl, as they come: what a run that was cut off had done is not done again.
    progress: called with (pairs done, pairs) after each.

    Raises ValueError and OSError in one line for whatever is wrong with these or the files they name.
    """
    layout = layout or find_layout(protocol, source)
    if layout not in LAYOUTS or LAYOUTS[layout].protocol != protocol:
        fitting = " or ".join(name for name, known in LAYOUTS.items() if known.protocol == protocol)
        raise ValueError(f"layout is {layout!r}, expected {fitting or 'another protocol'} for protocol {protocol!r}")
    if not models or len(set(models)) < len(models):
        raise ValueError(
            f"models are {', '.join(models) or 'none'}, expected one or more, each once, such as tiny, sift"
        )
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}, expected 1 or more pairs")
    max_size = LAYOUTS[layout].max_size if max_size is None else max_size
    settings = {"protocol": protocol, "source": str(source), "layout": layout, "max_size": max_size, "seed": seed}
    pairs = LAYOUTS[layout].read(source, **({"seed": seed} if layout == "synthetic" else {}))
    total = len(pairs) if limit is None else min(limit, len(pairs))  # type: ignore[arg-type]
    matchers = {name: load_matcher(name) for name in models}
    log = PairLog(out, {**settings, "models": {name: _identity(name) for name in models}})
    rows: dict[str, list[Row]] = {name: [] for name in models}
    for index, pair in enumerate(pairs):
        if index == total:
            break
        for name, matcher in matchers.items():
            row = log.done.get((name, index))
            if row is None or row["pair"] != pair.name:
                found = find_matches(matcher, pair, max_size)
                row = {"model": name, "index": index, "pair": pair.name, "ms": found.ms}
                row |= PROTOCOLS[protocol].judge(pair, found)
                log.add(row)
            rows[name].append(row)
        if progress is not None:
            progress(index + 1, total)
    summaries = [{"model": name, **PROTOCOLS[protocol].summarise(rows[name])} for name in models]
    table = Table(summaries, {**settings, "pairs": total})
    log.finish(table)
    return table


class PairLog:
    """Rows of single pairs in a file beside out, from which a run that was cut off goes on.

    While a run lasts the file is NAME.partial.jsonl, with the settings in its first line; other settings start it anew.
    A finished run leaves NAME.jsonl. Without out nothing is written.
    """

    def __init__(self, out: str | Path | None, settings: Row) -> None:
        self.out = None if out is None else check_output(out, TABLE_SUFFIXES)
        self.done: dict[tuple[str, int], Row] = {}
        if self.out is None:
            return
        self.partial = self.out.with_suffix(".partial.jsonl")
        whole = self._read()
        if not whole or whole[0] != settings:
            whole = [settings]
        self.done = {(row["model"], row["index"]): row for row in whole[1:]}
        self.partial.write_text("".join(_line(row) for row in whole), encoding="utf-8")

    def _read(self) -> list[Row]:
        """The file's whole lines; one that was cut off in writing, and any after it, are left out."""
        rows: list[Row] = []
        lines = self.partial.read_text(encoding="utf-8").splitlines() if self.partial.is_file() else []
        for line in lines:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                break
            rows.append({key: np.inf if value is None else value for key, value in row.items()})
        return rows

    def add(self, row: Row) -> None:
        """Append one pair's row."""
        if self.out is not None:
            with self.partial.open("a", encoding="utf-8") as file:
                file.write(_line(row))

    def finish(self, table: Table) -> None:
        """Write the table and give the file of pairs its final name."""
        if self.out is not None:
            table.save(self.out)
            self.partial.replace(self.out.with_suffix(".jsonl"))


def _line(row: Row) -> str:
    """A line of JSON, which knows no infinity: failures are null."""
    return json.dumps({key: None if value == np.inf else value for key, value in row.items()}) + "\n"


def _identity(model: str) -> str:
    """What must be the same for a cut-off run to go on: a file of weights by its size and time, others by name."""
    path = Path(model)
    if not path.is_file():
        return model
    stat = path.stat()
    return f"{model} {stat.st_size} {stat.st_mtime_ns}"
