"""The tab Match."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from ..predict.confidence import select_confident
from ..predict.matches import Geometry, Matches
from ..viz.animation import blend_frames, save_animation, warp_onto
from ..viz.matches import draw_matches
from .limits import KEEP, gr, photograph, read_upload, told
from .shared import EXAMPLES, LIGHT, NETWORK, download, for_page, network, picture_file, snippet

LEAST = 0.05  # confidence of matches that the slider can bring back
GEOMETRIES = ["none", "homography", "fundamental"]


@dataclass(frozen=True, eq=False)
class Found:
    """What a visitor's page remembers of a run: both images as drawn, their scales, and all matches in pixels of the files."""

    images: tuple[np.ndarray, np.ndarray]
    scales: tuple[np.ndarray, np.ndarray]
    matches: Matches

    def above(self, threshold: float) -> Matches:
        """Matches with a confidence above it."""
        rows = self.matches.confidence > threshold
        found = self.matches
        return Matches(found.keypoints0[rows], found.keypoints1[rows], found.confidence[rows], found.scale)

    def drawn(self, matches: Matches) -> Matches:
        """The same in pixels of the images as drawn."""
        points = (
            (p + 0.5) * s - 0.5 for p, s in zip((matches.keypoints0, matches.keypoints1), self.scales, strict=True)
        )
        first, second = (np.asarray(one, np.float32) for one in points)
        return Matches(first, second, matches.confidence)


@told
def run(first: str | None, second: str | None, model: str, max_size: int, align: bool, refine: bool) -> tuple[Any, ...]:
    """Match both photographs; what is remembered, and where the slider starts."""
    images = read_upload(first, "A"), read_upload(second, "B")
    matcher = network(model)
    matches = matcher.match(*images, max_size=int(max_size), threshold=LEAST, align=align, refine=refine)
    calibrated = refine and matcher.model.config.calibration
    usual = select_confident(matches.confidence) if calibrated else matches.confidence > matcher.model.config.threshold
    start = float(matches.confidence[usual].min()) - 1e-4 if usual.any() else LEAST
    small = for_page(images[0]), for_page(images[1])
    scales = [np.array([s.shape[1] / i.shape[1], s.shape[0] / i.shape[0]]) for s, i in zip(small, images, strict=True)]
    options = ", ".join([f"max_size={int(max_size)}"] + ["align=False"] * (not align) + ["refine=False"] * (not refine))
    code = (
        "from quadtree_attention import Matcher\n\n"
        f'matcher = Matcher.from_pretrained("{model}")\n'
        f'matches = matcher.match("a.jpg", "b.jpg", {options})\n'
        'matches.save("matches.npz")\n'
    )
    return Found(small, (scales[0], scales[1]), matches), gr.update(value=round(max(start, LEAST), 3)), code


@told
def show(
    found: Found | None, threshold: float, geometry: str, inliers_only: bool, lines: str, layout: str, top: int
) -> tuple[Any, ...]:
    """Draw what a run found, and fit a geometry; no network runs."""
    if found is None:
        return None, "", None
    matches = found.above(threshold)
    fitted = None if geometry == "none" else matches.geometry(geometry)
    drawn = found.drawn(matches)
    picture = draw_matches(
        *found.images,
        drawn,
        None if fitted is None else fitted.inliers,
        outliers=not inliers_only,
        lines=lines,  # type: ignore[arg-type]  # from the list on the page
        layout=layout,  # type: ignore[arg-type]
        top=int(top) or None,
    )
    text = f"**{len(matches):,} matches**"
    overlay = None
    if fitted is not None:
        text += f", {int(fitted.inliers.sum()):,} inliers ({geometry})"
        if fitted.model is None:
            text += ": too few matches, or none that fits"
        elif geometry == "homography":
            overlay = _overlay(found, drawn)
    return picture, text, gr.update(value=overlay, visible=overlay is not None)


def _overlay(found: Found, drawn: Matches) -> np.ndarray | None:
    """B laid half transparent over A."""
    fitted = drawn.geometry("homography")
    if fitted.model is None:
        return None
    over = warp_onto(*found.images, fitted.model)
    share = over[..., 3:] / 510
    return np.uint8(np.rint(found.images[0] * (1 - share) + over[..., :3] * share))


@told
def files(found: Found | None, threshold: float, geometry: str, picture: np.ndarray | None) -> list[str]:
    """Downloads of every format."""
    if found is None or picture is None:
        raise InputError("there is nothing to save yet; match two photographs first")
    matches = found.above(threshold)
    fitted: Geometry | None = None if geometry == "none" else matches.geometry(geometry)
    out = [download(f"matches{end}", lambda path: matches.save(path, fitted)) for end in (".npz", ".json", ".csv")]
    out.append(picture_file(picture, "matches.png"))
    if geometry == "homography":
        plane = found.drawn(matches).geometry("homography")
        if plane.model is not None:
            frames = blend_frames(*found.images, plane.model)
            out.append(download("blend.gif", lambda path: save_animation(frames, path)))
    return out


def tab() -> None:
    """Build the tab."""
    gr.Markdown("Find points of photograph A in photograph B.")
    remembered = gr.State(None, time_to_live=KEEP)
    with gr.Row():
        first = photograph("A", "match-a")
        second = photograph("B", "match-b")
    gr.Examples([[str(EXAMPLES / "leuven_a.jpg"), str(EXAMPLES / "leuven_b.jpg")]], [first, second], label="Example")
    with gr.Accordion("Options", open=False):
        model = gr.Dropdown(
            ["tiny", "indoor", "outdoor"], value="tiny", label="Model (indoor and outdoor are downloaded)"
        )
        max_size = gr.Slider(160, 1024, 640, step=32, label="Shrink the longer side to so many pixels")
        align = gr.Checkbox(True, label="If the images differ in scale or rotation, align them and match a second time")
        refine = gr.Checkbox(True, label="Move matches to a fraction of a pixel")
    button = gr.Button("Match", variant="primary", elem_id="match-run")
    said = gr.Markdown(elem_id="match-said")
    picture = gr.Image(label="Matches", interactive=False, format="jpeg", elem_id="match-picture")
    with gr.Row():
        threshold = gr.Slider(LEAST, 1, 0.3, step=0.001, label="Least confidence", elem_id="match-threshold")
        geometry = gr.Radio(GEOMETRIES, value="fundamental", label="Geometry", elem_id="match-geometry")
    with gr.Accordion("Picture", open=False):
        inliers_only = gr.Checkbox(False, label="Inliers only")
        lines = gr.Radio(["normal", "thin", "none"], value="normal", label="Lines")
        layout = gr.Radio(["beside", "above"], value="beside", label="Images")
        top = gr.Slider(0, 500, 0, step=10, label="Only the surest (0: all)")
    overlay = gr.Image(label="B laid over A", interactive=False, format="jpeg", visible=False, elem_id="match-overlay")
    save = gr.Button("Prepare downloads")
    saved = gr.Files(label="Downloads", interactive=False, height=110)
    code = snippet()
    looks = [remembered, threshold, geometry, inliers_only, lines, layout, top]
    shown = [picture, said, overlay]
    started = button.click(
        run,
        [first, second, model, max_size, align, refine],
        [remembered, threshold, code],
        api_visibility="private",
        **NETWORK,
    )
    started.success(show, looks, shown, api_visibility="private", **LIGHT)
    threshold.release(show, looks, shown, api_visibility="private", trigger_mode="always_last", **LIGHT)
    for part in (geometry, inliers_only, lines, layout):
        part.input(show, looks, shown, api_visibility="private", **LIGHT)
    top.release(show, looks, shown, api_visibility="private", **LIGHT)
    save.click(files, [remembered, threshold, geometry, picture], saved, api_visibility="private", **LIGHT)
