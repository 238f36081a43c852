import os
import pickle

import pytest
import torch

from quadtree_attention.weights import convert_published, read_checkpoint


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
