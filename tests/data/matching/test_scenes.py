from collections import Counter

import numpy as np
import pytest
import torch
from tests.support.scenes import write_colmap, write_megadepth, write_scannet
from torch.utils.data import ConcatDataset, TensorDataset

from quadtree_attention.data.arrays import read_arrays
from quadtree_attention.data.loading import StreamLoader
from quadtree_attention.data.matching import scenes as module
from quadtree_attention.data.matching.scenes import (
    ColmapData,
    MegaDepthData,
    ScanNetData,
    SceneSampler,
    Split,
    scenes_of_device,
)

SIZES = (3, 50, 1)


def sampler(**options):
    parts = [TensorDataset(torch.arange(size)) for size in SIZES]
    return SceneSampler(ConcatDataset(parts), **{"per_scene": 20, "seed": 7, **options})


def scene_of(number):
    return int(np.searchsorted(np.cumsum(SIZES), number, side="right"))


def test_as_many_pairs_of_each_scene():
    one = sampler()
    numbers = list(one)
    assert len(numbers) == len(one) == 60
    assert Counter(map(scene_of, numbers)) == {0: 20, 1: 20, 2: 20}
    assert set(numbers) - set(range(54)) == set()
    assert 10 < len({n for n in numbers if scene_of(n) == 1}) < 20  # with replacement
    assert [scene_of(n) for n in numbers[:20]] != [0] * 20  # shuffled
    assert list(one) == numbers == list(sampler())
    assert list(sampler(seed=8)) != numbers
    one.set_epoch(1)
    assert list(one) != numbers
    assert {n for n in sampler(per_scene=500) if scene_of(n) != 1} == {
        0,
        1,
        2,
        53,
    }  # the first and the last of a scene too
    other = sampler()
    other.rank = 1  # another device draws by itself
    assert list(other) != numbers


def test_a_loader_goes_on_amid_an_epoch():
    def loader():
        order = sampler()
        return StreamLoader(order.dataset, sampler=order, batch_size=7, drop_last=True)

    whole = loader()
    whole.sampler.set_epoch(2)
    batches = [batch[0].tolist() for batch in whole]
    cut = loader()
    cut.sampler.set_epoch(2)
    stream = iter(cut)
    for _ in range(3):
        next(stream)
    rest = loader()
    rest.load_state_dict(cut.state_dict())
    assert [batch[0].tolist() for batch in rest] == batches[3:]


def test_scenes_are_dealt_out():
    names = [f"s{k}" for k in range(10)]
    parts = [scenes_of_device(names, 4, rank, seed=1) for rank in range(4)]
    assert [len(part) for part in parts] == [3, 3, 3, 3]
    assert {name for part in parts for name in part} == set(names)
    assert sorted(scenes_of_device(names, 1, 0, seed=1)) == names


def test_scannet(maker, tmp_path):
    write_scannet(tmp_path, maker, 2, 2, (48, 64))
    index = tmp_path / "index"
    files = {
        "root": str(tmp_path / "train"),
        "index": str(index / "scene_data" / "train"),
        "intrinsics": str(index / "intrinsics.npz"),
    }
    split = Split(**files, scenes=str(index / "scene_data" / "train_list" / "scannet_all.txt"))
    data = ScanNetData(split, Split(**files), size=(64, 48), batch_size=2, per_scene=3, num_workers=0)
    batches = list(data.train_dataloader())
    assert [tuple(batch["image0"].shape) for batch in batches] == [(2, 1, 48, 64)] * 3
    assert len(data.val_dataloader()) == 4
    with pytest.raises(ValueError, match=r"val\.intrinsics is missing"):
        ScanNetData(split, Split(root="a", index="b"))
    with pytest.raises(ValueError, match="no pair with an overlap above 2"):
        ScanNetData(Split(**files, min_overlap=2), split).train_dataloader()
    with pytest.raises(FileNotFoundError, match=r"none\.txt cannot be read"):
        ScanNetData(Split(**files, scenes=str(tmp_path / "none.txt")), split).train_dataloader()
    with pytest.raises(ValueError, match="no scenes in it"):
        ScanNetData(Split(**{**files, "index": str(tmp_path)}), split).train_dataloader()


def test_scenes_share_what_they_have_in_common(maker, tmp_path, monkeypatch):
    write_scannet(tmp_path, maker, 3, 1, (48, 64))
    files = {"root": str(tmp_path / "train"), "index": str(tmp_path / "index" / "scene_data" / "train")}
    split = Split(**files, intrinsics=str(tmp_path / "index" / "intrinsics.npz"))
    read = []
    monkeypatch.setattr(module, "read_arrays", lambda path: read.append(path) or read_arrays(path))
    ScanNetData(split, split, num_workers=0).train_dataloader()
    assert read == [split.intrinsics]


def test_training_and_validation_are_kept_apart(maker, tmp_path):
    for name, scenes in (("train", 1), ("val", 2)):
        write_scannet(tmp_path / "scannet" / name, maker, scenes, 1, (48, 64))
        write_megadepth(tmp_path / "megadepth" / name, maker, scenes, 1, (48, 64))
        write_colmap(tmp_path / "colmap" / name, maker, 0, scenes, (48, 64))

    def split(layout, name, index, **options):
        folder = tmp_path / layout / name
        return Split(root=str(folder / "train"), index=str(folder / "index" / index), **options)

    scannet, megadepth = (
        [
            split(
                "scannet",
                name,
                "scene_data/train",
                intrinsics=str(tmp_path / "scannet" / name / "index/intrinsics.npz"),
            )
            for name in ("train", "val")
        ],
        [split("megadepth", name, "scene_info_0.1_0.7") for name in ("train", "val")],
    )
    colmap = [[str(tmp_path / "colmap" / name)] for name in ("train", "val")]
    for data in (
        ScanNetData(*scannet, per_scene=1, num_workers=0),
        MegaDepthData(*megadepth, per_scene=1, num_workers=0),
        ColmapData(*colmap, max_overlap=1, min_overlap=0, num_workers=0),
    ):
        assert len(data.train_dataloader().dataset) == 1
        assert len(data.val_dataloader().dataset) == 2
    strict = Split(root=megadepth[0].root, index=megadepth[0].index, min_overlap=1.0)
    with pytest.raises(ValueError, match=r"no pair with an overlap above 1\.0"):
        MegaDepthData(strict, megadepth[1], num_workers=0).train_dataloader()


def test_megadepth(maker, tmp_path):
    write_megadepth(tmp_path, maker, 1, 2, (48, 64))
    index = tmp_path / "index"
    split = Split(
        root=str(tmp_path / "train"),
        index=str(index / "scene_info_0.1_0.7"),
        scenes=str(index / "trainvaltest_list" / "train_list.txt"),
    )
    data = MegaDepthData(split, split, longest=56, val_longest=64, batch_size=2, per_scene=2, num_workers=0)
    (batch,) = data.train_dataloader()
    assert batch["image0"].shape == (2, 1, 56, 56)
    assert batch["mask1"].dtype == torch.bool
    assert next(iter(data.val_dataloader()))["depth0"].shape == (1, 64, 64)


def test_colmap_by_a_worker(maker, tmp_path):
    write_colmap(tmp_path, maker, 0, 1, (48, 64))
    data = ColmapData([str(tmp_path)], [str(tmp_path)], max_overlap=1, longest=64, per_scene=2, num_workers=1)
    (first, second) = data.train_dataloader()
    assert torch.equal(first["points0"], second["points0"])
    assert first["points0"].shape == (1, 1024, 3)


def test_a_batch_needs_its_pairs(maker, tmp_path):
    write_colmap(tmp_path, maker, 0, 1, (48, 64))
    data = ColmapData(
        [str(tmp_path)], [str(tmp_path)], max_overlap=1, longest=64, per_scene=2, batch_size=3, num_workers=0
    )
    with pytest.raises(ValueError, match="an epoch has 2 pairs, 2 of each of 1 scenes, fewer than a batch of 3"):
        data.train_dataloader()


def test_nothing_of_a_scene():
    with pytest.raises(ValueError, match="per_scene is 0"):
        ColmapData([], [], per_scene=0)
