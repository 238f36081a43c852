import os
import pickle
import zipfile

import pytest
import torch

from quadtree_attention.errors import InputError
from quadtree_attention.models.checkpoint import is_checkpoint, weights_in
from quadtree_attention.weights import convert_published, read_checkpoint

from ..fuzz.kinds.weights import HOSTILE_CHECKPOINTS


class Config:
    """A class of the training code that wrote the checkpoint."""

    def __init__(self):
        self.steps = [1, 2]


class Dictionary(dict):
    """A container class, as configurations often are."""


class Run:
    """What a hostile file has."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def checkpoint(**other):
    return {"state_dict": {"matcher.weight": torch.arange(3.0)}, "epoch": 7, **other}


@pytest.mark.parametrize("zipped", [True, False])
def test_other_objects_are_replaced(tmp_path, zipped):
    path = tmp_path / "outdoor.ckpt"
    other = {"config": Config(), "nested": [Dictionary(a=Config()), {1, 2}, torch.float32, torch.nn.Linear(2, 2)]}
    torch.save(checkpoint(**other), path, _use_new_zipfile_serialization=zipped)
    content = read_checkpoint(path)
    assert content["epoch"] == 7
    assert not isinstance(content["config"], Config)
    assert torch.equal(convert_published(read_checkpoint(path))["level_weights"], torch.arange(3.0))


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_file_is_run(tmp_path, zipped):
    path, made = tmp_path / "hostile.ckpt", tmp_path / "made"
    torch.save(checkpoint(payload=Run(made)), path, _use_new_zipfile_serialization=zipped)
    assert torch.equal(convert_published(read_checkpoint(path))["level_weights"], torch.arange(3.0))
    assert not made.exists()


def test_bare_pickle_is_not_run_either(tmp_path):
    path, made = tmp_path / "hostile.pth", tmp_path / "made"
    path.write_bytes(pickle.dumps(Run(made)))
    with pytest.raises(ValueError, match="not readable as a checkpoint"):
        read_checkpoint(path)
    assert not made.exists()


def test_plain_state_dict_and_safetensors(tmp_path):
    from safetensors.torch import save_file

    state = {"weight": torch.arange(3.0)}
    torch.save(state, tmp_path / "plain.pth")
    save_file(state, tmp_path / "plain.safetensors")
    for name in ("plain.pth", "plain.safetensors"):
        assert torch.equal(convert_published(read_checkpoint(tmp_path / name))["level_weights"], state["weight"])


@pytest.mark.parametrize(
    "name", ["storage", "storage-negative", "memo", "long", "deep", "build", "bare-memo", "beyond", "offset"]
)
def test_a_file_cannot_lie_about_sizes(tmp_path, name):
    """torch takes a storage's size from the pickle, and reads on behind the record's end."""
    path = tmp_path / "w.ckpt"
    path.write_bytes(HOSTILE_CHECKPOINTS[name])
    with pytest.raises(InputError, match=r"w\.ckpt: (not readable as a checkpoint|holds a list)") as error:
        weights_in(read_checkpoint(path))
    assert "\n" not in str(error.value)


def test_one_number_is_no_terabyte(tmp_path):
    (tmp_path / "w.ckpt").write_bytes(HOSTILE_CHECKPOINTS["repeated"])
    with pytest.raises(InputError, match="the weights are 4000000000000 bytes of 16 in the file"):
        weights_in(read_checkpoint(tmp_path / "w.ckpt"))


def test_a_zip_that_expands(tmp_path):
    torch.save({"x": torch.zeros(10**6)}, tmp_path / "a.ckpt")
    with (
        zipfile.ZipFile(tmp_path / "a.ckpt") as old,
        zipfile.ZipFile(tmp_path / "b.ckpt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(InputError, match=r"it holds 400\d+ bytes in a file of"):
        read_checkpoint(tmp_path / "b.ckpt")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
@pytest.mark.parametrize("zipped", [True, False])
def test_truncated(tmp_path, share, zipped):
    path = tmp_path / "w.pth"
    torch.save(checkpoint(other=torch.zeros(10_000)), path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r"w\.pth: not readable as a checkpoint"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("wrap", "name"),
    [
        (lambda state: {f"module.{key}": value for key, value in state.items()}, "a.pth"),
        (lambda state: {f"_orig_mod.{key}": value for key, value in state.items()}, "a.pth.tar"),
        (lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()}, "a.PTH"),
        (lambda state: {"n_averaged": torch.tensor(3), **{f"module.{key}": value for key, value in state.items()}}, "a.bin"),
        (lambda state: {"state_dict": {key: value + 1 for key, value in state.items()}, "state_dict_ema": state}, "a.CKPT"),
        (lambda state: {"model": {key: value + 1 for key, value in state.items()}, "model_ema": state}, "a.pt"),
        (lambda state: {"model": state, "model_ema": None, "args": 3}, "a.pth"),
    ],
)  # fmt: skip
def test_wrappers_and_averages(tmp_path, wrap, name):
    torch.save(wrap({"weight": torch.arange(3.0)}), tmp_path / name)
    assert is_checkpoint(tmp_path / name)
    assert torch.equal(convert_published(read_checkpoint(tmp_path / name))["level_weights"], torch.arange(3.0))


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_checkpoint(tmp_path / "missing.ckpt")
    for name, content in (
        ("empty.ckpt", b""),
        ("text.ckpt", b"hello"),
        ("text.safetensors", b"hello"),
        ("cut.ckpt", b"PK\x03\x04abc"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: not readable as a checkpoint") as error:
            read_checkpoint(tmp_path / name)
        assert "\n" not in str(error.value)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds a list"):
        read_checkpoint(tmp_path / "list.pth")
