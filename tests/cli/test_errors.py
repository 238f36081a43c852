"""Which errors are the user's, one line and exit status 2, and which are bugs of ours, a traceback."""

import re
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from quadtree_attention.__main__ import _LESS_MEMORY, main
from quadtree_attention.cli import app
from quadtree_attention.errors import out_of_memory
from quadtree_attention.predict.classification import Classifier
from quadtree_attention.predict.detection import Detector
from quadtree_attention.predict.matching import Matcher
from quadtree_attention.predict.segmentation import Segmenter
from quadtree_attention.predict.stereo import StereoMatcher

PREDICTORS = {
    "match": Matcher,
    "stereo": StereoMatcher,
    "classify": Classifier,
    "detect": Detector,
    "segment": Segmenter,
}


def break_network(model, error):
    """Any part of the network raises the error when it is called."""

    def forward(*_, **__):
        raise error

    for module in model.modules():
        module.forward = forward


@pytest.fixture
def broken(monkeypatch):
    """``broken(command, error)``: its network raises the error."""

    def install(command, error):
        predictor = PREDICTORS[command]
        made = predictor.__init__

        def init(self, model, device=None):
            made(self, model, device)
            break_network(self.model, error)

        monkeypatch.setattr(predictor, "__init__", init)

    return install


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError("a bug"), TypeError("a bug"), RuntimeError("a bug")])
@pytest.mark.parametrize("command", PREDICTORS)
def test_a_bug_is_a_traceback(command, error, broken, photos, tmp_path):
    broken(command, error)
    images = [photos[0]] * 2 if command in ("match", "stereo") else [str(tmp_path)]  # of folders, no image is left out
    with pytest.raises(type(error), match="a bug"):
        main([command, *images])


OUT_OF_MEMORY = [
    MemoryError(),
    np._core._exceptions._ArrayMemoryError((2**40,), np.dtype("f8")),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    ),
    RuntimeError("CUDA error: out of memory"),
    OSError(12, "Cannot allocate memory"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_out_of_memory_names_the_option(error, broken, photos, capsys):
    for command, predictor in PREDICTORS.items():
        with pytest.MonkeyPatch.context() as patch:
            made = predictor.__init__

            def init(self, model, device=None, made=made):
                made(self, model, device)
                break_network(self.model, error)

            patch.setattr(predictor, "__init__", init)
            images = [photos[0]] * 2 if command in ("match", "stereo") else photos[:1]
            assert main([command, *images]) == 2
        assert capsys.readouterr().err.splitlines()[-1] == f"quadtree: out of memory; {_LESS_MEMORY[command]}"


def test_a_real_allocation_that_fails_is_one():
    for allocate in (lambda: torch.empty(2**60, dtype=torch.uint8), lambda: np.empty(2**60, np.uint8)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            allocate()
        assert out_of_memory(caught.value)
    assert not out_of_memory(RuntimeError("shapes do not fit"))


def test_hints_name_options_that_there_are():
    import inspect

    functions = {command.name or command.callback.__name__: command.callback for command in app.registered_commands}
    functions = {name.replace("_", "-"): function for name, function in functions.items()}
    for name, hint in _LESS_MEMORY.items():
        option = hint.split("--")[1].split()[0].rstrip(",")
        assert name in functions
        if not option.startswith("data."):
            assert option.replace("-", "_") in inspect.signature(functions[name]).parameters


def test_an_image_that_needs_too_much_memory_is_left_out(photos, tmp_path, monkeypatch, capsys):
    classify = Classifier.classify

    def hungry(self, image, *, top):
        if image.shape[1] == 140:
            raise MemoryError
        return classify(self, image, top=top)

    monkeypatch.setattr(Classifier, "classify", hungry)
    assert main(["classify", *photos, "-q"]) == 1
    captured = capsys.readouterr()
    assert captured.err == f"quadtree: left out: {photos[0]}: out of memory\n"
    assert photos[1] in captured.out


@pytest.mark.parametrize("device", ["meta", "abacus", "xla", "fpga", "hpu", "0", ""])
def test_devices_that_cannot_be_used(device, photos, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of names that it no longer uses
        for command in PREDICTORS:
            images = [photos[0]] * 2 if command in ("match", "stereo") else photos[:1]
            assert main([command, *images, "--device", device]) == 2
            error = capsys.readouterr().err
            assert re.match(
                rf"quadtree: device {device!r} (cannot be used, expected for example cpu or cuda: .|is unknown, expected )",
                error,
            )
            assert len(error) < 300  # not torch's list of all devices
            assert error.count("\n") == 1


@pytest.mark.parametrize("command", PREDICTORS)
def test_weights_that_are_not_finite(command, photos, tmp_path, capsys):
    from safetensors import safe_open
    from safetensors.torch import save_file

    from quadtree_attention.weights.registry import PRETRAINED

    name = {"match": "tiny", "stereo": "stereo_tiny"}.get(command, f"{command}_tiny")
    with safe_open(PRETRAINED[name].path, framework="pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    key = max(tensors, key=lambda key: tensors[key].numel())
    tensors[key].view(-1)[0] = torch.nan
    save_file(tensors, tmp_path / "nan.safetensors", metadata)
    images = [photos[0]] * 2 if command in ("match", "stereo") else photos[:1]
    assert main([command, *images, "--model", str(tmp_path / "nan.safetensors")]) == 2
    error = capsys.readouterr().err
    assert key in error
    assert "NaN" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["match", "a"], "match"),
        (["detect", "--nonsense"], "detect"),
        (["match-folder", "x"], "match-folder"),
        ([], ""),
    ],
)
def test_hints_point_to_the_help_of_the_command(arguments, command, capsys):
    assert main(arguments or ["nonsense"]) == 2
    assert f"; see quadtree {command}".rstrip() + " --help\n" in capsys.readouterr().err
    assert main([*filter(None, [command]), "-h"]) == 0
    assert f"Usage: quadtree {command}".rstrip() in capsys.readouterr().out


def test_short_options(capsys):
    assert main(["-v"]) == 0
    assert capsys.readouterr().out.startswith("quadtree-attention ")
    for command in ("match", "match-folder", "stereo", "classify", "detect", "segment", "evaluate", "bench"):
        assert main([command, "--help"]) == 0
        assert "-o, --out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "knows"), [("classify", "knows dress, hat"), ("detect", "knows "), ("segment", "knows background, ")]
)
def test_the_default_says_what_it_knows(command, knows, photos, capsys):
    assert main([command, photos[0]]) == 0
    error = capsys.readouterr().err
    assert error.startswith(f"quadtree: {command}_tiny, the default, {knows}")
    for options in (["-q"], ["--model", "tiny"]):
        assert main([command, photos[0], *options]) == 0
        assert capsys.readouterr().err == ""


def test_warnings_of_ours_are_lines_of_the_command(photos, monkeypatch, capsys):
    def match(self, *_, **__):
        warnings.warn("the views look\nexchanged", stacklevel=2)
        return SimpleNamespace(range=(0, 1), occlusion=np.zeros(1))

    monkeypatch.setattr(StereoMatcher, "match", match)
    assert main(["stereo", photos[0], photos[0]]) == 0
    assert capsys.readouterr().err == "quadtree: the views look exchanged\n"
    assert main(["stereo", photos[0], photos[0], "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_one_line_for_a_picture_that_its_format_cannot_hold(tmp_path):
    from quadtree_attention.viz.drawing import save_picture

    with pytest.raises(ValueError, match=r"would have 1x20000 pixels, \.webp holds 16383 per side; write a \.png"):
        save_picture(np.zeros((20000, 1, 3), np.uint8), tmp_path / "p.webp")
    save_picture(np.zeros((20000, 1, 3), np.uint8), tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.size == (1, 20000)
