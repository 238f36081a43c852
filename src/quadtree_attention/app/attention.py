"""The tab Attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from ..predict.attention import ImageAttention, PointAttention, image_attention
from ..viz.attention import draw_attention
from .limits import KEEP, gr, photograph, read_upload, told
from .shared import EXAMPLES, LIGHT, NETWORK, download, network, picture_file, snippet

MODELS = {
    "matcher": "tiny",
    "stereo": "stereo_tiny",
    "classifier": "classify_tiny",
    "detector": "detect_tiny",
    "segmenter": "segment_tiny",
}
PAIRS = ("matcher", "stereo")


@dataclass(frozen=True, eq=False)
class Found:
    """What a visitor's page remembers: the recorded attention, both photographs, and which files and network they were."""

    seen: ImageAttention
    images: tuple[np.ndarray, np.ndarray | None]
    key: tuple[Any, ...]


@told
def click(
    remembered: Found | None,
    first: str | None,
    second: str | None,
    model: str,
    layer: int,
    head: int,
    point: list[int] | None,
    event: gr.SelectData,  # type: ignore[name-defined]  # gradio is imported by require
) -> tuple[Any, ...]:
    """Where the point that was clicked looks."""
    return _look(remembered, first, second, model, layer, head, [int(event.index[0]), int(event.index[1])])


def _look(
    remembered: Found | None, first: str | None, second: str | None, model: str, layer: int, head: int, point: list[int]
) -> tuple[Any, ...]:
    """What the page shows of a point. The network runs for a new photograph or network only."""
    key = (first, second if model in PAIRS else None, model)
    if remembered is None or remembered.key != key:
        image = read_upload(first, "A")
        other = read_upload(second, "B") if key[1] is not None else None
        seen = image_attention(network(MODELS[model]), image, other, max_size=640 if model in PAIRS else None)
        remembered = Found(seen, (image, other), key)
    number = int(layer) or None
    found = remembered.seen.at(point[0], point[1], layer=number, head=int(head) or None)
    picture = draw_attention(*remembered.images, found)
    layers = ", ".join(f"{n} {name}" for n, name in enumerate(remembered.seen.layers, 1))
    said = f"**Layer {found.layer}, {found.name}, {found.heads}.** {found.cost[0].upper()}{found.cost[1:]}.  \nLayers: {layers}."
    return remembered, point, picture, said, _code(key, point, found)


def _code(key: tuple[Any, ...], point: list[int], found: PointAttention) -> str:
    files = '"a.jpg", "b.jpg"' if key[1] is not None else '"a.jpg"'
    head = "" if found.head is None else f", head={found.head}"
    second = '"b.jpg"' if key[1] is not None else "None"
    return (
        "from quadtree_attention.predict.attention import image_attention, load_for_attention\n"
        "from quadtree_attention.viz.attention import draw_attention\n\n"
        f'seen = image_attention(load_for_attention("{MODELS[key[2]]}"), {files})\n'
        f"found = seen.at({point[0]}, {point[1]}, layer={found.layer}{head})\n"
        f'picture = draw_attention("a.jpg", {second}, found)\n'
    )


@told
def again(*arguments: Any) -> tuple[Any, ...]:
    """The same point with another layer, head or network; nothing happens before there is a point."""
    if arguments[-1] is None or arguments[1] is None:
        return arguments[0], arguments[-1], gr.skip(), gr.skip(), gr.skip()
    return _look(*arguments)


@told
def files(found: Found | None, point: list[int] | None, layer: int, head: int, picture: np.ndarray | None) -> list[str]:
    """Downloads of every format."""
    if found is None or point is None or picture is None:
        raise InputError("there is nothing to save yet; click into photograph A first")
    one = found.seen.at(point[0], point[1], layer=int(layer) or None, head=int(head) or None)
    return [
        *(download(f"attention{end}", one.save) for end in (".json", ".npz")),
        picture_file(picture, "attention.png"),
    ]


def tab() -> None:
    """Build the tab."""
    gr.Markdown(
        "Click into photograph A. You see which patches of B (or of A itself) that point looks at, level by level."
    )
    remembered, point = gr.State(None, time_to_live=KEEP), gr.State(None, time_to_live=KEEP)
    with gr.Row():
        first = photograph("A: click here", "attention-a", 320)
        second = photograph("B, for a matcher or stereo", "attention-b", 320)
    gr.Examples([[str(EXAMPLES / "leuven_a.jpg"), str(EXAMPLES / "leuven_b.jpg")]], [first, second], label="Example")
    with gr.Row():
        model = gr.Dropdown(list(MODELS), value="matcher", label="Network")
        layer = gr.Slider(0, 12, 0, step=1, label="Layer (0: the one that shows most)")
        head = gr.Slider(0, 8, 0, step=1, label="Head (0: mean of all)", elem_id="attention-head")
    said = gr.Markdown(elem_id="attention-said")
    picture = gr.Image(label="What the point looks at", interactive=False, format="jpeg", elem_id="attention-picture")
    save = gr.Button("Prepare downloads")
    saved = gr.Files(label="Downloads", interactive=False, height=110)
    code = snippet()
    asked = [remembered, first, second, model, layer, head, point]
    shown = [remembered, point, picture, said, code]
    first.select(click, asked, shown, api_visibility="private", **NETWORK)
    for part in (layer, head):
        part.release(again, asked, shown, api_visibility="private", **NETWORK)
    model.input(again, asked, shown, api_visibility="private", **NETWORK)
    save.click(files, [remembered, point, layer, head, picture], saved, api_visibility="private", **LIGHT)
