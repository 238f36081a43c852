"""Options of training data that cannot be: one line that names the option, before any image is read."""

from dataclasses import fields

import pytest

from quadtree_attention.data.appearance import Appearance
from quadtree_attention.data.matching.homography import HomographyDataset, Warp
from quadtree_attention.data.matching.made_scenes import MadeScenes, Motion
from quadtree_attention.data.stereo.packed import PackedCrops
from quadtree_attention.data.stereo.scenes import Scene
from quadtree_attention.data.stereo.synthetic import StereoDataset, Views
from quadtree_attention.errors import InputError

PHOTO = "examples/leuven_a.jpg"
OPTIONS = [(kind, field.name) for kind in (Appearance, Warp, Motion, Scene, Views) for field in fields(kind)]


@pytest.mark.parametrize(("kind", "name"), OPTIONS, ids=lambda x: getattr(x, "__name__", x))
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_every_option_has_a_range(kind, name, value):
    usual = getattr(kind(), name)
    with pytest.raises(InputError, match=f"^{name} is "):
        kind(**{name: (value, value) if isinstance(usual, tuple) else value})


def test_the_least_comes_first():
    with pytest.raises(InputError, match=r"^overlap is \(0.9, 0.3\), expected the smaller number first$"):
        Motion(overlap=(0.9, 0.3))


@pytest.mark.parametrize(
    ("dataset", "least"), [(HomographyDataset, 32), (MadeScenes, 32), (StereoDataset, 32), (PackedCrops, 8)]
)
@pytest.mark.parametrize("size", [(0, 0), (-8, 64), (7, 64), (64, 100_000)])
def test_sizes(dataset, least, size):
    with pytest.raises(
        InputError, match=f"^size is {size[0]}x{size[1]}, expected {least} to 4096 pixels on each side$"
    ):
        dataset([PHOTO], size)


@pytest.mark.parametrize(
    ("dataset", "name", "value"),
    [
        (HomographyDataset, "collage", 1.5),
        (HomographyDataset, "collage", float("nan")),
        (HomographyDataset, "ramp", -1),
        (HomographyDataset, "length", 0),
        (HomographyDataset, "seed", -1),
        (MadeScenes, "pairs", 0),
        (MadeScenes, "homographies", -0.1),
        (MadeScenes, "difficulty", 2.0),
        (PackedCrops, "real_share", float("nan")),
    ],
)
def test_shares_and_counts(dataset, name, value):
    with pytest.raises(InputError, match=f"^{name} is {value}, expected at least "):
        dataset([PHOTO], **({"size": (64, 64)} | {name: value}))
