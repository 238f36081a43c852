"""The backbones in other forms of graphs, as timm's own tests ask for: torch.fx, TorchScript by script and by trace."""

import io

import pytest
import timm
import torch
from timm.models import create_feature_extractor, get_notrace_modules

import quadtree_attention.models  # registers the models
from quadtree_attention import QuadtreeAttention, quadtree_attention

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),  # of timm's modules and of size checks
]
OPTIONS = [{}, {"variant": "a"}, {"value": "pool"}, {"lepe": False}]


def model_and_images(size=(64, 73), **options):
    torch.manual_seed(0)
    model = timm.create_model("quadtree_b0", num_classes=5, depths=(1, 1, 1, 1), **options).eval()
    return model, torch.randn(2, 3, *size)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_script(options):
    model, images = model_and_images(**options)
    expected = model(images)
    scripted = torch.jit.script(model)
    torch.testing.assert_close(scripted(images), expected, rtol=1e-4, atol=1e-5)
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    _, others = model_and_images((40, 96))
    torch.testing.assert_close(loaded(others), model(others), rtol=1e-4, atol=1e-5)
    loaded(images).sum().backward()
    model(images).sum().backward()
    for ours, theirs in zip(model.parameters(), loaded.parameters(), strict=True):
        torch.testing.assert_close(theirs.grad, ours.grad, rtol=1e-3, atol=1e-4)


def test_fx():
    model, images = model_and_images()
    graph = create_feature_extractor(model, ["head"])
    torch.testing.assert_close(graph(images)["head"], model(images))
    torch.testing.assert_close(torch.jit.script(graph)(images)["head"], model(images), rtol=1e-4, atol=1e-5)
    assert {type(block.attn) for stage in model.stages for block in stage.blocks} <= set(get_notrace_modules())


def test_trace_of_a_backbone():
    model, images = model_and_images()
    traced = torch.jit.trace(model, images)
    torch.testing.assert_close(traced(images + 1), model(images + 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", [None, "reference", "cpu"])
def test_trace_of_the_operator_holds_for_other_sizes(backend):
    module = QuadtreeAttention(16, 2, levels=3, topk=4, backend=backend)
    traced = torch.jit.trace(module, torch.randn(2, 9, 11, 16))
    other = torch.randn(1, 16, 13, 16)
    torch.testing.assert_close(traced(other), module(other), rtol=1e-5, atol=1e-6)

    def call(x):
        out, kept = quadtree_attention(x, x, x, levels=2, topk=3, backend=backend, return_candidates=True)
        return out, kept[0]

    x = torch.randn(1, 9, 7, 2, 8)
    for ours, theirs in zip(call(x), torch.jit.trace(call, torch.randn(2, 4, 6, 2, 8))(x), strict=True):
        torch.testing.assert_close(theirs, ours)
