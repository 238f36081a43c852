"""Where pairs with known geometry come from: the layouts of folders and lists, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from ..data.matching.colmap import MODEL_PLACES
from ..data.matching.pairs import Pair
from ..errors import InputError
from . import lists, pose_sets
from .protocols import PROTOCOLS
from .synthetic import SyntheticHomographies


class Layout(NamedTuple):
    """How pairs are found in a folder or list, and how they are matched by default.

    max_size, multiple: see `predictions.predict`; extras: whether ``align`` and ``refine`` of Matcher.match are on, which published figures go
    without.
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
