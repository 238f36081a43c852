"""The tabs Classify, Detect and Segment: one photograph in, what it shows out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..predict.classification import save_classifications
from ..predict.detection import save_detections
from ..viz.classification import draw_classifications
from ..viz.detection import draw_detections
from ..viz.segmentation import draw_segmentation
from .limits import MAX_SIDE, gr, photograph, read_upload, told
from .shared import EXAMPLES, NETWORK, download, network, picture_file, snippet


@told
def classify(path: str | None, top: int) -> tuple[Any, ...]:
    """Likeliest classes."""
    image, top = read_upload(path, "the photograph"), int(top)
    found = network("classify_tiny").classify(image, top=top)
    name = Path(str(path)).name
    picture = draw_classifications([image], [found], tile=480)
    said = "  \n".join(f"{100 * p:.1f} % {label}" for label, p in zip(found.labels, found.probabilities, strict=True))
    out = [
        download(f"classes{end}", lambda place: save_classifications([name], [found], place))
        for end in (".json", ".csv")
    ]
    code = f'from quadtree_attention import Classifier\n\nClassifier.from_pretrained().classify("a.jpg", top={top})\n'
    return picture, said, [*out, picture_file(picture, "classes.png")], code


@told
def detect(path: str | None, score: float) -> tuple[Any, ...]:
    """Boxes."""
    image = read_upload(path, "the photograph")
    detector = network("detect_tiny")
    found = detector.detect(image, score=score)
    picture = draw_detections(image, found, max_side=MAX_SIDE)
    counts = ", ".join(f"{count} {label}" for label, count in found.counts().items())
    name = Path(str(path)).name
    entries = found.to_coco(name, detector.config.ids, name)
    out = download("detections.json", lambda place: save_detections(entries, place))
    code = f'from quadtree_attention import Detector\n\nDetector.from_pretrained().detect("a.jpg", score={score:g})\n'
    return picture, f"**{counts or 'nothing found'}**", [out, picture_file(picture, "detections.png")], code


@told
def segment(path: str | None, opacity: float) -> tuple[Any, ...]:
    """A class for each pixel."""
    image = read_upload(path, "the photograph")
    found = network("segment_tiny").segment(image)
    picture: np.ndarray = draw_segmentation(image, found, opacity=opacity, max_side=MAX_SIDE)
    said = ", ".join(f"{100 * share:.1f} % {name}" for name, share in found.shares().items())
    code = 'from quadtree_attention import Segmenter\n\nSegmenter.from_pretrained().segment("a.jpg").save("mask.png")\n'
    return picture, f"**{said}**", [download("mask.png", found.save), picture_file(picture, "segments.png")], code


def _tab(name: str, words: str, work: Callable[..., Any], option: Any) -> None:
    gr.Markdown(words)
    image = photograph("Photograph", f"{name}-a", 320)
    gr.Examples([str(EXAMPLES / "leuven_a.jpg")], image, label="Example")
    option.render()
    button = gr.Button(name.capitalize(), variant="primary", elem_id=f"{name}-run")
    said = gr.Markdown(elem_id=f"{name}-said")
    picture = gr.Image(label="Result", interactive=False, format="jpeg", elem_id=f"{name}-picture")
    saved = gr.Files(label="Downloads", interactive=False, height=110)
    button.click(work, [image, option], [picture, said, saved, snippet()], api_visibility="private", **NETWORK)


def classify_tab() -> None:
    """Build the tab Classify."""
    words = "The network in the package knows ten kinds of clothes and nothing else: it gives one of them for any photograph."
    _tab("classify", words, classify, gr.Slider(1, 10, 5, step=1, label="Classes to show", render=False))


def detect_tab() -> None:
    """Build the tab Detect."""
    words = "The network in the package knows blood cells and platelets under a microscope, and nothing else."
    _tab("detect", words, detect, gr.Slider(0.05, 1, 0.3, step=0.05, label="Least score", render=False))


def segment_tab() -> None:
    """Build the tab Segment."""
    words = "The network in the package knows garments laid over photographs; all else is background."
    _tab("segment", words, segment, gr.Slider(0.1, 1, 0.55, step=0.05, label="Opacity of the colours", render=False))
