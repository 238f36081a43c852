"""A whole evaluation: pairs, what matchers find in them, what that is worth, and the table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from .. import __version__
from ..data.matching.pairs import Pair
from ..errors import InputError
from ..extras import require
from ..files import check_output, printable, write_text
from ..formats import CHART_SUFFIXES
from ..table import TABLE_SUFFIXES, Table
from ..viz.chart import save_error_curves
from ..weights.registry import weights_identity
from .layouts import LAYOUTS, find_layout
from .matchers import MatchFunction, load_matcher, match_function
from .predictions import Prediction, PredictionFolder, predict
from .protocols import ESTIMATORS, PROTOCOLS, Row, judge, pose_error, pose_estimators, protocol_of, with_published

Padding = Literal["none", "masked", "attended"]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is measured, and how: all that figures depend on, but for the models.

    Args:
        protocol: "homography", "pose" or "stereo".
        source: folder or list of pairs.
        layout: a name of LAYOUTS; None: found from the source.
        limit: only the first pairs.
        max_size: images are shrunk to it, those of the layout "megadepth" enlarged too; None: 640, or what the layout is published with.
        seed: of the layout "synthetic"; None: 0.
        estimators: of poses, see `pose_estimators`; None: those whose package is there.
        topk: of quadtree attention, in place of the models' own.
        padding: see `load_matcher`.
        align, refine: see Matcher.match; None: not for poses and HPatches, as published.

    Raises:
        ValueError, OSError, ImportError: whatever is wrong with these, in one line.
    """

    protocol: str
    source: str | Path
    layout: str | None = None
    limit: int | None = None
    max_size: int | None = None
    seed: int | None = None
    estimators: Sequence[str] | None = None
    topk: Sequence[int] | None = None
    padding: Padding = "none"
    align: bool | None = None
    refine: bool | None = None

    def __post_init__(self) -> None:
        if self.layout is not None and (self.layout not in LAYOUTS or LAYOUTS[self.layout].protocol != self.protocol):
            fitting = " or ".join(name for name, known in LAYOUTS.items() if known.protocol == self.protocol)
            raise InputError(
                f"layout is {self.layout!r}, expected {fitting or 'another protocol'} for protocol {self.protocol!r}"
            )
        if self.limit is not None and self.limit < 1:
            raise InputError(f"limit is {self.limit}, expected 1 or more pairs")
        if self.padding not in get_args(Padding):
            raise InputError(f"padding is {self.padding!r}, expected {' or '.join(get_args(Padding))}")
        if self.seed is not None and self.layout_name != "synthetic":
            raise InputError(f"seed is for the layout synthetic, got {self.layout_name}; leave it out")
        if self.protocol != "pose" and self.estimators is not None:
            raise InputError(f"estimators are for the protocol pose, got {self.protocol}; leave them out")

    @cached_property
    def layout_name(self) -> str:
        """The name in LAYOUTS that counts."""
        return self.layout or find_layout(self.protocol, self.source)

    @cached_property
    def longest(self) -> int:
        """The ``max_size`` that counts."""
        return LAYOUTS[self.layout_name].max_size if self.max_size is None else self.max_size

    @cached_property
    def used_estimators(self) -> tuple[str, ...]:
        """The estimators of poses that count; none for other protocols."""
        return pose_estimators(self.estimators) if self.protocol == "pose" else ()

    @cached_property
    def settings(self) -> Row:
        """All that figures depend on, but for the models."""
        layout = LAYOUTS[self.layout_name]
        settings: Row = {"version": __version__, "protocol": self.protocol, "source": str(Path(self.source).resolve())}
        settings |= {"layout": self.layout_name, "max_size": self.longest}
        settings |= {"seed": self.seed or 0} if self.layout_name == "synthetic" else {}
        settings |= {"topk": None if self.topk is None else list(self.topk), "padding": self.padding}
        settings |= {name: layout.extras if asked is None else asked for name, asked in self._extras.items()}
        return settings | ({"estimators": list(self.used_estimators)} if self.protocol == "pose" else {})

    def pairs(self) -> Any:
        """The pairs, as many as are used: a list, or what makes them one after another and has a length."""
        seed = {"seed": self.seed or 0} if self.layout_name == "synthetic" else {}
        pairs = LAYOUTS[self.layout_name].read(self.source, **seed)
        return pairs[: self.limit] if isinstance(pairs, list) else pairs

    def matcher(self, model: str, device: str | None = None) -> MatchFunction:
        """A model by name, with these options."""
        options = {} if self.topk is None else {"topk": tuple(self.topk)}
        return load_matcher(model, options=options, padding=self.padding, device=device, **self._matching)

    def match_function(self, matcher: Any) -> MatchFunction:
        """A `Matcher` with these options, but for those that its network has: topk, and whether it sees padding."""
        return match_function(matcher, **{**self._matching, **({"pad_to": None} if self.padding == "none" else {})})

    def predict(self, matcher: MatchFunction, pair: Pair) -> Prediction:
        """What a matcher finds in a pair."""
        return predict(matcher, pair, self.longest, LAYOUTS[self.layout_name].multiple)

    def judge(self, pair: Pair, prediction: Prediction) -> Row:
        """What that is worth."""
        return {"ms": prediction.ms, **judge(pair, prediction, self.used_estimators)}

    def table(self, rows: Mapping[str, Sequence[Row]]) -> Table:
        """Figures of each model over its pairs, and beneath them what is published for the layout, where that is known."""
        summaries = [{"model": name, **PROTOCOLS[self.protocol](mine)} for name, mine in rows.items()]
        return Table(with_published(summaries, self.layout_name), {**self.settings, "pairs": summaries[0]["pairs"]})

    def check_models(self, models: Sequence[str], device: str | None = None) -> None:
        """Make sure that the models are some, each once, and that options of networks are for one.

        Raises:
            ValueError: they are not.
        """
        if not models or len(set(models)) < len(models):
            raise InputError(
                f"models are {', '.join(models) or 'none'}, expected one or more, each once, such as tiny, sift"
            )
        padding = None if self.padding == "none" else self.padding
        for option, value in {"topk": self.topk, "padding": padding, **self._extras, "device": device}.items():
            if value is not None and set(models) == {"sift"}:
                raise InputError(f"{option} is for networks, but models are sift; leave it out")

    @property
    def _extras(self) -> dict[str, bool | None]:
        return {"align": self.align, "refine": self.refine}

    @property
    def _matching(self) -> dict[str, Any]:
        """Arguments of matching: images are padded to squares as large as they may be, a multiple of what the layout asks for."""
        pad_to = self.longest - self.longest % (LAYOUTS[self.layout_name].multiple or 1)
        return {"pad_to": pad_to, **{name: self.settings[name] for name in self._extras}}


def run(
    evaluation: Evaluation,
    models: Sequence[str] = ("tiny", "sift"),
    *,
    out: str | Path | None = None,
    curve: str | Path | None = None,
    device: str | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> Table:
    """Measure models, all on the same images.

    What is found in each pair is written first, into the folder NAME.predictions beside ``out``, and then judged. What lies there is not matched
    again: a run that was cut off goes on, and one with another estimator or with more models matches what is new alone.

    Args:
        models: "sift", or what Matcher.from_pretrained takes.
        out: .json, .csv or .md for the table; every pair's figures go to a .jsonl beside it.
        curve: a picture of the share of pairs over their error.
        device: see Matcher.
        progress: called with (pairs done, pairs, those that this run matched) before the first and after each.

    Raises:
        ValueError, OSError, ImportError: whatever is wrong with these or the files they name, in one line.
    """
    evaluation.check_models(models, device)
    folder = None
    if out is not None:
        out = check_output(out, TABLE_SUFFIXES)
        folder = out.with_suffix(".predictions")
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file, expected a folder of predictions, or nothing; choose another --out")
    if curve is not None:
        if evaluation.protocol == "stereo":
            raise InputError("a curve shows one error a pair, of homographies or poses; the protocol stereo has none")
        curve = check_output(curve, CHART_SUFFIXES)
        require("matplotlib", "bench")
    pairs = evaluation.pairs()
    if curve is not None and isinstance(pairs, list):
        _refuse_input(curve, pairs)
    total = min(evaluation.limit or len(pairs), len(pairs))
    settings = {name: value for name, value in evaluation.settings.items() if name != "estimators"}
    matchers = {name: evaluation.matcher(name, device) for name in models}
    identities = {name: weights_identity(name) for name in models}
    kept = {
        name: PredictionFolder(folder, name, {**settings, "weights": identities[name]}) for name in models if folder
    }
    rows: dict[str, list[Row]] = {name: [] for name in models}
    fresh = 0
    if progress is not None:
        progress(0, total, fresh)
    for index, pair in zip(range(total), pairs, strict=False):
        known = True
        for name, matcher in matchers.items():
            found = kept[name].get(index, pair) if kept else None
            if found is None:
                known, found = False, evaluation.predict(matcher, pair)
                if kept:
                    kept[name].add(index, pair, found)
            head = {"model": name, "weights": identities[name], "index": index, "pair": pair.name}
            rows[name].append({**head, **evaluation.judge(pair, found)})
        fresh += not known
        if progress is not None:
            progress(index + 1, total, fresh)
    table = evaluation.table(rows)
    if curve is not None:
        save_error_curves(error_curves(evaluation, rows), curve, degrees=evaluation.protocol == "pose")
    if out is not None:
        table.save(out)
        lines = [evaluation.settings, *(row for mine in zip(*rows.values(), strict=True) for row in mine)]
        write_text(out.with_suffix(".jsonl"), printable("".join(map(_line, lines))))
    return table


def evaluate_pairs(
    matcher: MatchFunction,
    pairs: Iterable[Pair],
    *,
    max_size: int = 640,
    estimators: Sequence[str] | None = ("opencv",),
) -> Row:
    """Measure a match function on pairs of one kind, as `run` does, and write nothing.

    estimators: of poses, "opencv" and "poselib"; None: those whose package is there.
    """
    rows, protocol = [], ""
    for pair in pairs:
        found, protocol = predict(matcher, pair, max_size), protocol_of(pair)
        rows.append({"ms": found.ms, **judge(pair, found, pose_estimators(estimators))})
    if not rows:
        raise InputError("there are no pairs, expected at least one")
    return PROTOCOLS[protocol](rows)


def error_curves(evaluation: Evaluation, rows: Mapping[str, Sequence[Row]]) -> dict[str, list[float]]:
    """Line of the chart -> errors of the pairs."""
    if evaluation.protocol == "homography":
        return {name: [row["corner_error"] for row in mine] for name, mine in rows.items()}
    return {
        name if estimator == "opencv" else f"{name}, {estimator}": [
            pose_error(row, ESTIMATORS[estimator][0]) for row in mine
        ]
        for name, mine in rows.items()
        for estimator in evaluation.used_estimators
    }


def _refuse_input(path: Path, pairs: Iterable[Pair]) -> None:
    """Make sure that no image of the pairs is overwritten."""
    images = {image for pair in pairs for image in (pair.image0, pair.image1) if isinstance(image, str | Path)}
    if path.exists() and any(path.samefile(image) for image in images):
        raise InputError(f"curve is {path}, which is an image of the pairs, expected another name for it")


def _line(row: Row) -> str:
    """A line of JSON, which knows no infinity: failures are null."""
    return json.dumps({key: None if value == np.inf else value for key, value in row.items()}) + "\n"
