"""Where points of photographs look: boxes lie where the network's cells do, and say what the recorded calls say."""

import json

import numpy as np
import pytest
import torch

from quadtree_attention import Classifier, Detector, Matcher, Segmenter, StereoMatcher
from quadtree_attention.models.loftr import LOFTR_PRESETS, LoFTR, LoFTRConfig
from quadtree_attention.predict.attention import image_attention, load_for_attention


@pytest.fixture(scope="module")
def matcher():
    return Matcher.from_pretrained("tiny")


def areas(boxes):
    return ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sum()


def test_a_pair(matcher, photo):
    """Cells are 8 pixels of the images as shrunk: here by 2, of images of different sizes."""
    a, b = np.repeat(np.repeat(photo, 2, 0), 2, 1), photo[:, :100]
    seen = image_attention(matcher, a, b, max_size=160)
    assert seen.layers == ["self-attention", "cross-attention"] * 2
    assert seen.default_layer == 4
    found = seen.at(100, 70, head=2)
    assert found.cross
    assert [level.grid for level in found.levels] == [(4, 4), (8, 7), (15, 13)]
    assert [level.query.tolist() for level in found.levels] == [
        [64, 64, 128, 128],
        [96, 64, 128, 96],
        [96, 64, 112, 80],
    ]
    first, second, third = found.levels
    assert len(first) == 16
    assert areas(first.boxes) == 100 * 120  # all of B, cut at its edges
    assert first.kept.sum() == 8
    for coarse, fine in ((first, second), (second, third)):
        kept = coarse.boxes[coarse.kept > 0]
        assert areas(fine.boxes) == pytest.approx(areas(kept))
        for box in fine.boxes:  # each lies in one that was kept
            assert ((kept[:, :2] <= box[:2]) & (kept[:, 2:] >= box[2:])).all(1).any()
        assert fine.scores.sum() == pytest.approx(1, abs=1e-5)
    looked_at = [sum(map(len, seen.at(100, 70, head=head).levels)) for head in (1, 2, 3, 4)]
    assert found.path.computed == np.mean(looked_at)
    assert f"{round(np.mean(looked_at))} scores a head, of 195 with dense attention" in found.cost


def test_one_photograph(matcher, photo):
    seen = image_attention(matcher, photo)
    assert seen.layers == ["self-attention"] * 2
    found = seen.at(0, 0)
    assert (found.layer, found.cross, found.heads) == (2, False, "mean of 4 heads")
    assert set(np.round(found.levels[0].kept * 4).astype(int)) <= {0, 1, 2, 3, 4}
    assert found.levels[-1].query.tolist() == [0, 0, 8, 8]


def test_rows_of_a_stereo_pair(photo):
    seen = image_attention(StereoMatcher.from_pretrained("tiny"), photo, np.roll(photo, -8, 1))
    assert seen.layers == [
        "self-attention along the row",
        "cross-attention along the row",
        "self-attention along the row",
    ]
    for layer in (1, 2, 3):
        found = seen.at(90, 61, layer=layer)
        assert found.cross == (layer == 2)
        assert found.levels[-1].query.tolist() == [88, 60, 92, 64]
        assert set(map(tuple, found.levels[0].boxes[:, 1::2].tolist())) == {(60, 64)}
        assert areas(found.levels[0].boxes) == 160 * 4


def test_rows_are_those_of_their_pixels():
    """Where only one row of the left image has texture, the scores of that row alone differ from those of an even image."""
    network = StereoMatcher.from_pretrained("tiny")
    network.model.transformer.by_rows = True  # groups of rows, as in networks without MLP
    network.model.transformer.tokens_at_once = 64
    left = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    grouped = image_attention(network, left, left)
    network.model.transformer.tokens_at_once = None
    whole = image_attention(network, left, left)
    for layer in (2, 3):
        for y in (3, 41, 95):
            one, other = grouped.at(50, y, layer=layer, head=1), whole.at(50, y, layer=layer, head=1)
            assert one.levels[-1].query.tolist() == other.levels[-1].query.tolist()
    assert sum(call.batch for call in grouped._layers[1].calls) == 24


@pytest.mark.parametrize(
    ("predictor", "size"),
    [(Classifier, (200, 320)), (Detector, (240, 240)), (Segmenter, (100, 180))],
    ids=lambda value: getattr(value, "__name__", "x".join(map(str, value)) if isinstance(value, tuple) else value),
)
def test_backbones(predictor, size):
    """The first stage's finest cells over the image: 4 pixels of what the network sees."""
    network = predictor.from_pretrained()
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    seen = image_attention(network, image)
    assert seen.layers[:2] == ["stage 1, block 1", "stage 2, block 1"]
    found = seen.at(size[1] // 2, size[0] // 2, layer=1)
    x0, y0, x1, y1 = found.levels[-1].query
    assert x0 <= size[1] // 2 + 0.5 <= x1
    assert y0 <= size[0] // 2 + 0.5 <= y1
    assert areas(found.levels[0].boxes) <= size[0] * size[1] + 1
    if predictor is not Classifier:
        assert areas(found.levels[0].boxes) == pytest.approx(size[0] * size[1], rel=1e-4)
    with pytest.raises(ValueError, match="expected one"):
        image_attention(network, image, image)
    with pytest.raises(ValueError, match="max_size"):
        image_attention(network, image, max_size=100)


def test_where_a_classifier_looks_at_is_told_by_a_bright_square():
    classifier = Classifier.from_pretrained()
    for height, width in ((200, 320), (310, 150)):
        image = np.zeros((height, width, 3), np.uint8)
        image[90:110, 70:90] = 255
        given, (left, top, across, down) = classifier.prepare(image)
        light = given[0].mean(0)
        light = light - light.min()
        rows, columns = np.indices(light.shape) + 0.5
        x, y = ((light.numpy() * places).sum() / float(light.sum()) for places in (columns, rows))
        assert (left + x * across, top + y * down) == (pytest.approx(80, abs=2), pytest.approx(100, abs=2))
    with pytest.raises(ValueError, match="does not see"):
        image_attention(classifier, image).at(5, 5)


def test_files(matcher, photo, tmp_path):
    found = image_attention(matcher, photo, photo).at(30.5, 40, head=1)
    for name in ("a.json", "a.npz"):
        found.save(tmp_path / name)
    data = json.loads((tmp_path / "a.json").read_text())
    assert (data["point"], data["layer"], data["head"], data["looks_into"]) == ([30.5, 40], 4, 1, "B")
    with np.load(tmp_path / "a.npz") as arrays:
        for number, level in enumerate(data["levels"], 1):
            assert [patch["box"] for patch in level["patches"]] == arrays[f"level{number}_boxes"].round(2).tolist()
            assert len(arrays[f"level{number}_scores"]) == len(level["patches"]) == len(found.levels[number - 1])
        assert arrays["cost"].tolist() == [
            data[name] for name in ("computed", "dense", "layer_computed", "layer_dense")
        ]
    with pytest.raises(ValueError, match="unknown suffix"):
        found.save(tmp_path / "a.txt")


def test_no_point_runs_the_network_again(matcher, photo):
    seen = image_attention(matcher, photo, photo)
    hook = matcher.model.register_forward_pre_hook(lambda *_: pytest.fail("ran again"))
    coarse = matcher.model.coarse.register_forward_pre_hook(lambda *_: pytest.fail("ran again"))
    try:
        assert seen.at(3, 4).point != seen.at(50, 60).point
    finally:
        hook.remove()
        coarse.remove()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(x=160, y=3), "expected x from 0 to 159 and y from 0 to 119"),
        (dict(x=float("nan"), y=3), "expected x from 0"),
        (dict(x=3, y=-1), "expected x from 0"),
        (dict(x=3, y=3, layer=5), "layer is 5, expected 1 to 4: 1 self-attention, 2 cross-attention"),
        (dict(x=3, y=3, layer=0), "layer is 0"),
        (dict(x=3, y=3, head=5), "head is 5, expected 1 to 4"),
    ],
)
def test_mistakes(arguments, message, matcher, photo):
    with pytest.raises(ValueError, match=message):
        image_attention(matcher, photo, photo).at(**arguments)


def test_networks_without_quadtree_attention(photo):
    with pytest.raises(ValueError, match="LoFTR has no quadtree attention"):
        image_attention(Matcher(LoFTR(LoFTRConfig(**{**LOFTR_PRESETS["tiny"].__dict__, "attention": "linear"}))), photo)
    with pytest.raises(ValueError, match="second image is missing"):
        image_attention(StereoMatcher.from_pretrained("tiny"), photo)


def test_any_weights_become_a_predictor():
    for name, kind in (("tiny", Matcher), ("stereo_tiny", StereoMatcher), ("detect_tiny", Detector)):
        assert isinstance(load_for_attention(name), kind)
    with pytest.raises(ValueError, match="unknown model"):
        load_for_attention("huge")


def test_nothing_is_left_on_the_network(matcher, photo):
    before = {name: set(vars(part)) for name, part in matcher.model.named_modules()}
    image_attention(matcher, photo, photo)
    assert {name: set(vars(part)) for name, part in matcher.model.named_modules()} == before
    assert torch.is_grad_enabled()
