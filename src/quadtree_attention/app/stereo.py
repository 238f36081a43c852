"""The tab Stereo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.stereo.calibration import StereoCamera
from ..errors import InputError
from ..predict.stereo import Stereo
from ..viz.animation import save_animation, turntable_frames
from ..viz.disparity import draw_disparity
from .limits import KEEP, MAX_SIDE, gr, photograph, read_upload, told
from .shared import EXAMPLES, LIGHT, NETWORK, download, network, picture_file, snippet


@dataclass(frozen=True, eq=False)
class Found:
    """What a visitor's page remembers of a run: the result, the view that it is of, and the scale of the picture."""

    stereo: Stereo
    image: np.ndarray
    scale: float


@told
def run(left: str | None, right: str | None, max_size: int, view: str) -> tuple[Any, ...]:
    """Disparity of the pair: what is remembered, the picture, what to say, the scene turning, and the code."""
    images = read_upload(left, "the left image"), read_upload(right, "the right image")
    stereo = network("stereo_tiny").match(*images, max_size=int(max_size), view=view)
    image = images[view == "right"]
    scale = min(1.0, MAX_SIDE / max(image.shape[:2]))
    picture = draw_disparity(stereo, max_side=MAX_SIDE)
    low, high = stereo.range
    said = f"**Disparity {low:.1f} to {high:.1f} pixels**, {100 * (stereo.occlusion > 0.5).mean():.0f} % hidden"
    frames = turntable_frames(stereo, image, steps=24)
    scene = download("scene.gif", lambda path: save_animation(frames, path))
    code = (
        "from quadtree_attention import StereoMatcher\n\n"
        'matcher = StereoMatcher.from_pretrained("tiny")\n'
        f'stereo = matcher.match("left.jpg", "right.jpg", max_size={int(max_size)}, view="{view}")\n'
        'stereo.save("disparity.pfm")\n'
    )
    return Found(stereo, image, scale), picture, said, scene, code


@told
def read_out(found: Found | None, event: gr.SelectData) -> str:  # type: ignore[name-defined]  # gradio is imported by require
    """The disparity of the pixel that was clicked."""
    if found is None:
        return ""
    x, y = (int(place / found.scale) for place in event.index)
    height, width = found.stereo.disparity.shape
    if not (0 <= x < width and 0 <= y < height):
        return "outside of the image"
    hidden = ", hidden from the other view: a guess" if found.stereo.occlusion[y, x] > 0.5 else ""
    return f"**{found.stereo.disparity[y, x]:.2f} pixels** at {x}, {y}{hidden}"


@told
def files(found: Found | None, picture: np.ndarray | None, focal: float | None, baseline: float | None) -> list[str]:
    """Downloads of every format; point cloud and depth where the camera is known."""
    if found is None or picture is None:
        raise InputError("there is nothing to save yet; run stereo first")
    if (focal is None) != (baseline is None):
        raise InputError("focal length and baseline go together; give both, or neither")
    camera = None if focal is None or baseline is None else StereoCamera(focal, baseline)
    out = [download(f"disparity{end}", found.stereo.save) for end in (".npy", ".pfm", ".png")]
    out.append(picture_file(picture, "disparity_picture.png"))
    frames = turntable_frames(found.stereo, found.image, camera)
    out.append(download("scene.gif", lambda path: save_animation(frames, path)))
    if camera is not None:
        out.append(download("scene.ply", lambda path: found.stereo.save_points(path, found.image, camera)))
        out.append(download("depth.npy", lambda path: found.stereo.save_depth(path, camera)))
    return out


def tab() -> None:
    """Build the tab."""
    gr.Markdown("Depth from two photographs side by side. Rows must correspond: the pair must be rectified.")
    remembered = gr.State(None, time_to_live=KEEP)
    with gr.Row():
        left = photograph("Left", "stereo-a")
        right = photograph("Right", "stereo-b")
    gr.Examples([[str(EXAMPLES / "aloe_left.jpg"), str(EXAMPLES / "aloe_right.jpg")]], [left, right], label="Example")
    with gr.Accordion("Options", open=False):
        max_size = gr.Slider(160, 1024, 640, step=32, label="Shrink the longer side to so many pixels")
        view = gr.Radio(["left", "right"], value="left", label="Disparity of which image")
        focal = gr.Number(None, label="Focal length in pixels, for depth and .ply", minimum=0)
        baseline = gr.Number(None, label="Distance of the cameras; depth has its unit", minimum=0)
    button = gr.Button("Run stereo", variant="primary", elem_id="stereo-run")
    said = gr.Markdown(elem_id="stereo-said")
    picture = gr.Image(label="Disparity: click to read it", interactive=False, format="png", elem_id="stereo-picture")
    pixel = gr.Markdown(elem_id="stereo-pixel")
    scene = gr.Image(label="The scene turning", interactive=False, format="gif", type="filepath", height=420)
    save = gr.Button("Prepare downloads")
    saved = gr.Files(label="Downloads", interactive=False, height=110)
    code = snippet()
    button.click(
        run,
        [left, right, max_size, view],
        [remembered, picture, said, scene, code],
        api_visibility="private",
        **NETWORK,
    )
    picture.select(read_out, remembered, pixel, api_visibility="private", **LIGHT)
    save.click(files, [remembered, picture, focal, baseline], saved, api_visibility="private", **LIGHT)
