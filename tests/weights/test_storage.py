"""Files of weights that are not what they should be: what they say of themselves is checked before anything is built."""

import json
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from quadtree_attention import Classifier, Detector, Matcher, Segmenter, StereoMatcher
from quadtree_attention.errors import InputError
from quadtree_attention.models.classifier import ClassifierConfig
from quadtree_attention.models.detection import DetectorConfig
from quadtree_attention.models.loftr import LoFTRConfig
from quadtree_attention.models.releases import EMBEDDED
from quadtree_attention.models.segmentation import SegmenterConfig
from quadtree_attention.models.sttr import STTRConfig
from quadtree_attention.weights import save
from quadtree_attention.weights.config import configuration
from quadtree_attention.weights.files import read_metadata

KINDS = {
    "tiny": Matcher,
    "stereo_tiny": StereoMatcher,
    "classify_tiny": Classifier,
    "detect_tiny": Detector,
    "segment_tiny": Segmenter,
}
INSIDE = {"classify_tiny": "classifier", "detect_tiny": "detector"}  # where the configuration lies


@contextmanager
def memory_of(count):
    """Let the process have so many bytes more than it has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def changed(name, path, **values):
    """The embedded file with other values in its configuration."""
    metadata = read_metadata(EMBEDDED / f"{name}.safetensors")
    config = json.loads(metadata["config"])
    (config[INSIDE[name]] if name in INSIDE else config).update(values)
    save_file(load_file(EMBEDDED / f"{name}.safetensors"), path, {**metadata, "config": json.dumps(config)})
    return path


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    "config",
    ["null", "7", "[]", '"x"', "{}", "[" * 100_000, '{"a":' * 100_000, '{"a": ' + "9" * 5000 + "}", "nul", ""],
)
def test_a_configuration_that_is_none(name, config, tmp_path):
    metadata = read_metadata(EMBEDDED / f"{name}.safetensors")
    state = {"x": torch.zeros(1)}
    save_file(state, tmp_path / "w.safetensors", {**metadata, "config": config})
    with pytest.raises(InputError, match=r"w\.safetensors") as error:
        KINDS[name].from_pretrained(tmp_path / "w.safetensors", device="cpu")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("tiny", {"num_heads": "x"}, "has num_heads = 'x' in its configuration, expected a whole number"),
        ("tiny", {"num_layers": True}, "has num_layers = True in"),
        ("tiny", {"block_dims": 7}, "expected a list, each a whole number"),
        ("tiny", {"block_dims": [10**12] * 3}, "has block_dims = a list of 3 in"),
        ("tiny", {"block_dims": [32, 64, -128]}, "block_dims"),
        ("tiny", {"mlp_ratio": float("nan")}, "has mlp_ratio = nan in"),
        ("tiny", {"attention": ["full"]}, "has attention = a list of 1 in its configuration, expected one of quadtree_a,"),
        ("tiny", {"topk": [[1]]}, "has topk = "),
        ("tiny", {"num_layers": 100_000}, "a network of many more parts than there are tensors in the file"),
        ("tiny", {"block_dims": [32, 64, 999_936]}, "weights do not fit the model"),
        ("tiny", {"fine_window": 100_001}, "has fine_window = 100001 in its configuration, expected a whole number up to 99"),
        ("stereo_tiny", {"num_layers": 100_000}, "a network of many more parts"),
        ("stereo_tiny", {"stem_dims": [16, 999_999, 32]}, "weights do not fit the model"),
        ("stereo_tiny", {"sinkhorn_iterations": 10**6}, "expected a whole number up to 1000"),
        ("classify_tiny", {"labels": "abc"}, "has labels = 'abc' in its configuration, expected a list, each a word"),
        ("classify_tiny", {"labels": [["a"]] * 10}, "has labels = "),
        ("classify_tiny", {"options": {"pretrained": True}}, "has pretrained among the options"),
        ("classify_tiny", {"options": {"checkpoint_path": "x.pth"}}, "has checkpoint_path among the options"),
        ("classify_tiny", {"options": {"embed_dims": [10**6, 10**6, 10**6, 10**6]}}, "w.safetensors"),
        ("classify_tiny", {"options": {"depths": "x"}}, "depths, embed_dims, num_heads and levels have 1, 4, 4 and 4"),
        ("classify_tiny", {"options": {"drop_path_rate": "x"}}, "options do not fit quadtree_b0: "),
        ("classify_tiny", {"model": 5}, "has model = 5 in its configuration, expected a word"),
        ("classify_tiny", {"input_size": [3, 10**6, 10**6]}, "has input_size = "),
        ("detect_tiny", {"options": None}, "has options = None in"),
        ("detect_tiny", {"channels": 999_936}, "weights do not fit the model"),
        ("detect_tiny", {"min_size": 10**6}, "has min_size = 1000000 in its configuration, expected a whole number up to"),
        ("segment_tiny", {"neck_channels": 999_999}, "weights do not fit the model"),
        ("segment_tiny", {"long_side": 10**6}, "has long_side = "),
        ("segment_tiny", {"mean": [None] * 3}, "has mean = a list of 3 in its configuration, expected a list, each a number"),
    ],
)  # fmt: skip
def test_a_configuration_that_asks_for_what_is_not_there(name, values, message, tmp_path):
    path = changed(name, tmp_path / "w.safetensors", **values)
    with memory_of(2 << 30), pytest.raises(InputError) as error:
        KINDS[name].from_pretrained(path, device="cpu")
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_checkpoints_of_training_are_checked_too(tmp_path):
    for content, message in (
        ({"config": {"num_heads": None}, "state_dict": {"model.x": torch.zeros(1)}}, "has num_heads = None"),
        ({"config": {3: 4}, "state_dict": {"model.x": torch.zeros(1)}}, "expected names with values"),
        ({"config": {}, "state_dict": 7}, "no weights found"),
        ({"config": {}, "state_dict": {3: torch.zeros(1), "model.x": "y"}}, "x holds a str, expected a tensor"),
    ):
        torch.save(content, tmp_path / "w.ckpt")
        with pytest.raises(InputError, match=message) as error:
            Matcher.from_pretrained(tmp_path / "w.ckpt")
        assert str(error.value).startswith(str(tmp_path / "w.ckpt"))


@pytest.mark.parametrize("kind", [LoFTRConfig, STTRConfig, ClassifierConfig, DetectorConfig, SegmenterConfig])
def test_every_configuration_has_types_that_are_checked(kind, tmp_path):
    """A type that the check does not know would let everything through, or nothing."""
    needed = {"detector": "retinanet", "backbone": "quadtree_b0", "model": "quadtree_b0", "labels": ["a"]}
    values = {name: value for name, value in needed.items() if name in kind.__dataclass_fields__}
    config = configuration(kind, values, tmp_path)
    every = vars(config)
    assert configuration(kind, every, tmp_path) == config
    assert configuration(kind, json.loads(json.dumps(every)), tmp_path).__class__ is kind
    for name in every:
        with pytest.raises(InputError, match=f"has {name} = "):
            configuration(kind, {**every, name: object()}, tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value, tmp_path):
    model = Matcher.from_pretrained("tiny", device="cpu").model
    model.backbone.conv1.weight.data[0, 0, 0, 0] = value
    save(model, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"w\.safetensors: backbone\.conv1\.weight holds NaN or infinity"):
        Matcher.from_pretrained(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("name", "kind", "command"),
    [
        ("stereo_tiny", "stereo network", "stereo"),
        ("classify_tiny", "classifier", "classify"),
        ("detect_tiny", "detector", "detect"),
        ("segment_tiny", "segmenter", "segment"),
    ],
)
def test_weights_of_another_kind_are_named_with_their_command(name, kind, command):
    message = rf"{name}\.safetensors is of a {kind}, expected a matcher; quadtree {command} takes it"
    with pytest.raises(InputError, match=message):
        Matcher.from_pretrained(EMBEDDED / f"{name}.safetensors")
    with pytest.raises(InputError, match=r"tiny\.safetensors is of a matcher, expected a classifier; quadtree match"):
        Classifier.from_pretrained(EMBEDDED / "tiny.safetensors")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.eye(32).to_sparse(),
        torch.zeros(3, dtype=torch.complex64),
        torch.zeros(3, device="meta"),
    ],
)
def test_tensors_of_other_kinds(tensor, tmp_path):
    model = Matcher.from_pretrained("tiny", device="cpu").model
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save(
        {"config": vars(model.config), "state_dict": {**state, "model.backbone.conv1.weight": tensor}},
        tmp_path / "w.ckpt",
    )
    with pytest.raises(InputError, match="expected a plain one"):
        Matcher.from_pretrained(tmp_path / "w.ckpt")
