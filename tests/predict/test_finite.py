"""Finite weights whose sums overflow: an error in one line, for every network; never a result that means nothing."""

import numpy as np
import pytest
import torch

from quadtree_attention.errors import InputError
from quadtree_attention.models.classifier import ClassifierConfig
from quadtree_attention.models.detection import DetectorConfig, build_detector
from quadtree_attention.models.segmentation import SegmenterConfig
from quadtree_attention.predict.classification import Classifier
from quadtree_attention.predict.detection import Detector
from quadtree_attention.predict.matching import Matcher
from quadtree_attention.predict.segmentation import Segmenter
from quadtree_attention.predict.stereo import StereoMatcher
from quadtree_attention.weights import load

SMALL = {"depths": [1, 1, 1, 1], "embed_dims": [8, 8, 16, 16], "num_heads": [1, 1, 2, 2], "mlp_ratios": [2, 2, 2, 2]}
NAMES = ["cat", "dog"]
PAIR = [np.random.default_rng(n).integers(0, 256, (64, 96, 3), dtype=np.uint8) for n in (0, 1)]


def detector(kind):
    config = DetectorConfig(
        kind, "quadtree_b0", NAMES, [17, 18], options=SMALL, channels=8, features=8, min_size=64, max_size=96
    )
    return build_detector(config)


def detect(model):
    return lambda: Detector(model, "cpu").detect(PAIR[0])


CASES = {
    "classifier": (
        lambda: ClassifierConfig("quadtree_b0", NAMES, SMALL, [3, 64, 64], [0.5] * 3, [0.5] * 3).build(),
        lambda model: lambda: Classifier(model, "cpu").classify(PAIR[0]),
        ["patch_embed.proj.weight"],
    ),
    "segmenter": (
        lambda: SegmenterConfig("quadtree_b0", NAMES, SMALL, 16, 16, long_side=96, short_side=64).build(),
        lambda model: lambda: Segmenter(model, "cpu").segment(PAIR[0]),
        ["head.classify.weight"],
    ),
    "retinanet": (
        lambda: detector("retinanet"),
        detect,
        ["backbone.body.patch_embed.proj.weight"],
    ),
    "mask_rcnn": (
        lambda: detector("mask_rcnn"),
        detect,
        ["rpn.head.cls_logits.weight", "roi_heads.box_predictor.cls_score.weight"],
    ),
    "matcher": (
        lambda: load("tiny", "matcher"),
        lambda model: lambda: Matcher(model, "cpu").match(*PAIR, threshold=0.0),
        ["backbone.conv1.weight", "fine.layers.1.attn.v_proj.weight"],
    ),
    "stereo": (
        lambda: load("tiny", "stereo"),
        lambda model: lambda: StereoMatcher(model, "cpu").match(*PAIR),
        ["features.stem.0.weight"],
    ),
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, case in CASES.items() for name in case[2]])
def test_overflow_is_an_error(kind, name):
    make, predict, _ = CASES[kind]
    torch.manual_seed(0)
    model = make()
    model.get_parameter(name).data.fill_(3e38)
    with pytest.raises(InputError, match="NaN or infinity") as caught:
        predict(model)()
    assert "\n" not in str(caught.value)
