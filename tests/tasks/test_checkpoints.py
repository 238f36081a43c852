"""Checkpoints: written whole, read without running anything, found again."""

import errno
import os
import pickle
import zipfile

import pytest
import torch

from quadtree_attention.tasks import checkpoints
from quadtree_attention.tasks.checkpoints import WholeFiles, check_resumable, newest_checkpoint, read_training

GOOD = {
    "state_dict": {"a": torch.arange(2000.0)},
    "pytorch-lightning_version": "2.6",
    "loops": {},
    "optimizer_states": [],
    "lr_schedulers": [],
    "callbacks": {},
    "epoch": 1,
    "global_step": 7,
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "run" / "last.ckpt"
    WholeFiles().save_checkpoint(GOOD, path)
    return path


def test_a_file_is_what_was_written(path):
    content = WholeFiles().load_checkpoint(path)
    assert torch.equal(content["state_dict"]["a"], GOOD["state_dict"]["a"])
    check_resumable(content, path)
    assert [one.name for one in path.parent.iterdir()] == ["last.ckpt"]


def test_the_old_file_is_whole_until_the_new_one_is(path, monkeypatch):
    """A disk that is full, and whoever looks while the new one is being written."""
    before = path.read_bytes()

    def full(number):
        assert path.read_bytes() == before
        assert (path.parent / ".last.ckpt.part").stat().st_size > 0
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        WholeFiles().save_checkpoint({**GOOD, "epoch": 2}, path)
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir()] == ["last.ckpt"]


def test_what_a_kill_has_left_is_overwritten(path):
    (path.parent / ".last.ckpt.part").write_bytes(b"half")
    assert newest_checkpoint([path.parent]) == path
    WholeFiles().save_checkpoint({**GOOD, "epoch": 2}, path)
    assert read_training(path)["epoch"] == 2
    assert [one.name for one in path.parent.iterdir()] == ["last.ckpt"]


def test_the_newest(path, tmp_path):
    other = path.with_name("best.ckpt")
    other.write_bytes(b"")
    os.utime(path, (1, 1))
    assert newest_checkpoint([tmp_path / "none", path.parent]) == other
    assert newest_checkpoint([tmp_path / "none", tmp_path]) is None


class Attack:
    def __reduce__(self):
        return print, ("code was run",)


def test_nothing_pickled_is_run(path, capsys):
    torch.save({**GOOD, "callbacks": {"a": Attack()}}, path)
    with pytest.raises(
        ValueError, match=r"last.ckpt is not a checkpoint that training wrote, or is damaged \(it holds other objects"
    ):
        read_training(path)
    path.write_bytes(pickle.dumps(Attack()))
    with pytest.raises(ValueError, match=r"last.ckpt is not a checkpoint that training wrote"):
        read_training(path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_a_file_that_was_cut_off(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"last.ckpt is not a checkpoint that training wrote, or is damaged"):
        read_training(path)


def test_a_weight_that_was_altered(path):
    """Torch does not look at the checksums."""
    with zipfile.ZipFile(path) as archive:
        (name,) = (one for one in archive.namelist() if one.endswith("data/0"))
        place = path.read_bytes().index(archive.read(name))
    content = bytearray(path.read_bytes())
    content[place + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged \(wrong checksum of .*data/0\)"):
        read_training(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "no state_dict"),
        ({"a": 1}, "no state_dict"),
        ({**GOOD, "state_dict": {"a": 1}}, "no state_dict"),
        ({"state_dict": GOOD["state_dict"]}, r"has weights alone, expected .* --model.init_from"),
    ],
)
def test_what_is_no_checkpoint(path, content, message):
    torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        read_training(path)


def test_weights_without_the_state_of_the_training():
    with pytest.raises(ValueError, match=r"a.ckpt cannot be gone on with: it has no loops, .* --model.init_from"):
        check_resumable({"epoch": 1}, "a.ckpt")
