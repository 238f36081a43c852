import dataclasses
import json

import pytest

from quadtree_attention.models.loftr import LOFTR_PRESETS, LoFTR, LoFTRConfig


@pytest.mark.parametrize("name", sorted(LOFTR_PRESETS))
def test_presets_survive_json(name):
    config = LOFTR_PRESETS[name]
    assert LoFTRConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_presets_say_what_the_paper_says():
    assert set(LOFTR_PRESETS) == {"indoor", "outdoor", "lite", "tiny"}
    indoor, outdoor, lite = (LOFTR_PRESETS[name] for name in ("indoor", "outdoor", "lite"))
    assert indoor.topk == (32, 16)
    assert outdoor.topk == (16, 8)
    assert dataclasses.replace(indoor, topk=(16, 8)) == outdoor
    assert [2 * lite.initial_dim, *(2 * dim for dim in lite.block_dims)] == [outdoor.initial_dim, *outdoor.block_dims]
    assert (outdoor.d_model, outdoor.d_fine) == (256, 128)
    parameters = sum(parameter.numel() for parameter in LoFTR(outdoor).parameters())
    assert parameters == 12704264


def test_tiny_stays_embeddable():
    parameters = sum(tensor.numel() for tensor in LoFTR(LOFTR_PRESETS["tiny"]).state_dict().values())
    assert parameters * 4 < 8e6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention": "quadtree"}, "quadtree_a"),
        ({"block": "resnet"}, "vit, loftr"),
        ({"position": "rotary"}, "sine_bug"),
        ({"block_dims": (8, 16)}, "3 numbers"),
        ({"topk": (16, 8, 8)}, "expected 2"),
        ({"num_heads": 7}, "multiple of 4 and of num_heads"),
        ({"fine_heads": 3}, "multiple of fine_heads"),
        ({"fine_window": 4}, "odd"),
        ({"temperature": 0}, "above 0"),
        ({"border": -1}, "0 or more"),
        ({"num_layers": 0}, "at least 1"),
    ],
)
def test_nonsense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        LoFTRConfig(**change)
