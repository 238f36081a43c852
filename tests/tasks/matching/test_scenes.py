"""Training of the matcher on pairs with depth and pose."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tests.support.scenes import write_colmap, write_megadepth, write_scannet
from tests.tasks.training import LIGHTNING, made, trainer
from torch.utils.data import default_collate

from quadtree_attention.__main__ import main
from quadtree_attention.data.matching.colmap import ColmapScene
from quadtree_attention.data.matching.layouts import MegaDepthScene
from quadtree_attention.data.matching.made_scenes import MadeScenes, MadeScenesData, SceneMaker
from quadtree_attention.evaluation import protocols
from quadtree_attention.models.loftr import Features
from quadtree_attention.tasks.matching.loss import coarse_cross_entropy, coarse_focal_loss, coarse_sparse_focal_loss
from quadtree_attention.tasks.matching.metrics import MatchingMetrics
from quadtree_attention.tasks.matching.module import MatchingTask
from quadtree_attention.tasks.matching.sampling import found_matches
from quadtree_attention.tasks.matching.supervision import Supervision, supervision
from quadtree_attention.weights import read_checkpoint

pytestmark = LIGHTNING

# 16 channels at least: torch 2.15 writes beyond its buffers in the gradient of a strided 1x1 convolution of 8, channels last, on a CPU.
SMALL = {
    "initial_dim": 16,
    "block_dims": [16, 16, 16],
    "num_layers": 1,
    "num_heads": 2,
    "fine_heads": 2,
    "topk": [4, 4],
}
SIZE = (64, 96)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for k in range(3):
        noise = np.random.default_rng(k).normal(size=(150, 200)).cumsum(0).cumsum(1)
        Image.fromarray(np.uint8(255 * (noise - noise.min()) / np.ptp(noise))).save(folder / f"{k}.png")
    return folder


def task(options=None, **changes):
    pl.seed_everything(0, verbose=False)
    settings = {"learning_rate": 3e-3, "warmup_steps": 2, **changes}
    return made(MatchingTask, options={**SMALL, **(options or {})}, **settings)


@pytest.fixture(scope="module")
def batches(photos, tmp_path_factory):
    """A batch of each kind: made-up scenes, padded images, and single points."""
    folder = tmp_path_factory.mktemp("scenes")
    maker = SceneMaker(sorted(photos.iterdir()), 1)
    write_megadepth(folder / "megadepth", maker, 1, 2, (72, 96))
    write_colmap(folder / "colmap", maker, 0, 2, (72, 96))
    index = folder / "megadepth" / "index" / "scene_info_0.1_0.7" / "0000.npz"
    return {
        "made": default_collate(list(MadeScenes(maker.photos.paths, SIZE, length=2, homographies=0.5))),
        "padded": default_collate(list(MegaDepthScene(folder / "megadepth" / "train", index, longest=96))),
        "points": default_collate(list(ColmapScene(folder / "colmap", max_overlap=1, longest=96, points=64))),
    }


def true_of(batch, depth_tolerance=0.2, **masks):
    return supervision(batch, window=5, depth_tolerance=depth_tolerance, **masks)


@pytest.mark.parametrize("kind", ["made", "padded", "points"])
@pytest.mark.parametrize("matching", ["dual_softmax", "optimal_transport"])
@pytest.mark.parametrize("pairs", ["dense", "sparse"])
@pytest.mark.parametrize("percent", [None, 0.3])
def test_every_parameter_learns_from_every_kind(batches, kind, matching, pairs, percent):
    learner = task({"matching": matching}, pairs=pairs, fine_percent=percent, fine_truths=10)
    parts = learner.losses(batches[kind])
    parts["loss"].backward()
    assert all(part.isfinite() for part in parts.values())
    gradients = {name: p.grad for name, p in learner.named_parameters()}
    assert [name for name, grad in gradients.items() if grad is None or not grad.isfinite().all()] == []
    if matching == "optimal_transport":
        assert gradients["model.bin_score"] != 0
    else:
        assert "model.bin_score" not in gradients
    for name in ("model.coarse", "model.fine"):
        assert any(grad.abs().sum() > 0 for key, grad in gradients.items() if key.startswith(name))


def test_losses_are_those_that_are_asked_for(batches):
    """Each option of the coarse loss, by the loss's own function on what the network finds."""
    batch = batches["padded"]

    def both(options, expected, **network):
        learner = task(network, **options).eval()
        features = learner.model.encode(batch["image0"], batch["image1"], batch["mask0"], batch["mask1"])
        assignment = learner.model.assignment(features)
        masks = {"mask0": features.mask0, "mask1": features.mask1}
        truth = true_of(batch, **masks)[:3]
        want = expected(assignment, learner.model.without_dustbins(assignment), truth, masks)
        torch.testing.assert_close(learner.losses(batch)["coarse"], want)
        return float(want.detach())

    heavy = 1e6  # what does not match hardly counts before training
    found = [
        both({}, lambda a, c, truth, masks: coarse_focal_loss(c, truth, **masks)),
        both(
            {"negative_weight": heavy},
            lambda a, c, truth, masks: coarse_focal_loss(c, truth, negative_weight=heavy, **masks),
        ),
        both({"confidence_floor": 0.4}, lambda a, c, truth, masks: coarse_focal_loss(c, truth, floor=0.4, **masks)),
        both({"coarse": "cross_entropy"}, lambda a, c, truth, masks: coarse_cross_entropy(c, truth, **masks)),
        both(
            {"pairs": "sparse"},
            lambda a, c, truth, masks: coarse_sparse_focal_loss(a, truth, dustbins=True, **masks),
            matching="optimal_transport",
        ),
    ]
    assert len({round(loss, 4) for loss in found}) == len(found)  # else options could be ignored
    sparse = {"pairs": "sparse", "negative_weight": heavy}
    both(sparse, lambda a, c, truth, masks: coarse_sparse_focal_loss(c, truth, dustbins=False, **masks))


def test_a_tolerance_asks_whether_cells_are_in_sight(batches):
    """A wall before what image 0 shows: without the check, as published, cells match through it."""
    batch = {key: value[:1] for key, value in batches["made"].items()}
    batch["depth0"], batch["depth1"] = torch.full_like(batch["depth0"], 4.0), torch.full_like(batch["depth1"], 2.0)
    batch["K0"] = batch["K1"] = torch.tensor([[[90.0, 0, 47.5], [0, 90, 31.5], [0, 0, 1]]])
    batch["T_0to1"] = torch.eye(4)[None]
    assert len(true_of(batch, depth_tolerance=0.2).b) == 0
    assert len(true_of(batch, depth_tolerance=None).b) == 8 * 12
    # What comes to lie behind the other camera is nowhere, checked or not.
    batch["T_0to1"] = torch.diag(torch.tensor([-1.0, 1, -1, 1]))[None]
    truth = true_of(batch, depth_tolerance=None)
    assert len(truth.b) == 0
    assert truth.places.isinf().all()


def test_single_points_say_nothing_of_other_cells(batches):
    batch, learner = batches["points"], task()
    truth = true_of(batch)
    length = truth.known[0].shape[1]
    features = learner.model.encode(batch["image0"], batch["image1"])
    confidence = torch.full((2, length, length), 0.1)
    loss = learner.losses(batch, encoded=(features, confidence))["coarse"]
    other = torch.where(truth.known[0][:, :, None] & truth.known[1][:, None], 0.1, 0.7)
    torch.testing.assert_close(learner.losses(batch, encoded=(features, other))["coarse"], loss)
    sure = torch.full_like(other, 0.6)
    assert learner.losses(batch, encoded=(features, sure))["coarse"] < 0.5 * loss


def test_padding_makes_no_matches(batches):
    batch = batches["padded"]
    truth = true_of(batch, **{key: batch[key][:, ::8, ::8] for key in ("mask0", "mask1")})
    assert len(truth.b) > 10
    for b, i, j in zip(truth.b.tolist(), truth.i.tolist(), truth.j.tolist(), strict=True):
        for side, cell in (("0", i), ("1", j)):
            assert batch[f"mask{side}"][b, 8 * (cell // 12), 8 * (cell % 12)]


def fine_case(found, true, percent, truths, unknown=()):
    """Draw from ``found`` (i, j) of matching and ``true`` ones in one image of 8 x 8 cells."""
    places = torch.full((1, 64, 2), torch.inf)
    for i in range(64):
        if i not in unknown:
            places[0, i] = torch.tensor([8.0 * (i % 8) + 3, 8.0 * (i // 8)])  # 3 pixels to the right
    (f, g), (i, j) = (
        [torch.tensor([pair[k] for pair in pairs], dtype=torch.int64) for k in (0, 1)] for pairs in (found, true)
    )
    nothing = torch.zeros(len(true), 2)
    truth = Supervision(torch.zeros_like(i), i, j, nothing, nothing, places)
    maps = torch.zeros(1, 8, 8, 16)
    features = Features(maps, maps, maps, maps)
    given = (torch.zeros_like(f), f, g)
    b, i, j, offset = found_matches(given, truth, features, percent, truths, 5, torch.Generator().manual_seed(0))
    assert (b == 0).all()
    return list(zip(i.tolist(), j.tolist(), strict=True)), offset


def test_refinement_of_what_matching_finds():
    # A quarter of 64 cells is 16 matches: all that are found, filled up with true ones.
    found, true = [(k, k) for k in range(10)], [(40, 40), (41, 41)]
    drawn, offset = fine_case(found, true, 0.25, 2)
    assert drawn[:10] == found
    assert len(drawn) == 16
    assert set(drawn[10:]) <= set(true)
    torch.testing.assert_close(offset, torch.tensor([[0.75, 0.0]]).expand(16, 2))  # of a window's radius of 4 pixels
    # Too many are found: a draw among them, and the least number of true ones.
    drawn, _ = fine_case([(k, k) for k in range(30)], true, 0.25, 6)
    assert len(drawn) == 16
    assert all(i < 30 for i, _ in drawn[:10])
    assert len(set(drawn[:10])) > 3
    assert set(drawn[10:]) <= set(true)
    # A wrong one is far off; one whose place is not known is left out.
    drawn, offset = fine_case([(1, 2), (3, 3)], [], 0.25, 6, unknown=(3,))
    assert drawn == [(1, 2)]
    torch.testing.assert_close(offset, torch.tensor([[(8 + 3 - 16) / 4, 0.0]]))
    assert fine_case([], [], 0.25, 6)[0] == []


def test_padding_has_no_share_in_how_many_matches_refinement_gets():
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, :4] = True  # 32 of 64 cells: a quarter is 8
    maps = torch.zeros(1, 8, 8, 16)
    i = torch.arange(32)
    truth = Supervision(torch.zeros_like(i), i, i, torch.zeros(32, 2), torch.zeros(32, 2), torch.zeros(1, 64, 2))
    features = Features(maps, maps, maps, maps, mask, torch.ones_like(mask))
    nothing = (torch.zeros(0, dtype=torch.int64),) * 3
    drawn = found_matches(nothing, truth, features, 0.25, 0, 5, torch.Generator().manual_seed(0))
    assert len(drawn[0]) == 8


def test_what_refinement_learns_from_is_drawn_anew_in_each_epoch(monkeypatch):
    learner, seeds = task(), []
    zero = torch.zeros((), requires_grad=True)
    monkeypatch.setattr(learner, "losses", lambda batch, seed=0: seeds.append(seed) or {"loss": zero})
    monkeypatch.setattr(learner, "log_dict", lambda *_, **__: None)
    for epoch, rank, index in ((0, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0), (1, 0, 1)):
        learner._trainer = type("Trainer", (), {"current_epoch": epoch, "world_size": 2, "global_rank": rank})
        learner.training_step({"image0": torch.zeros(1)}, index)
    assert len(set(seeds)) == 5


def test_validation_encodes_a_pair_once_and_leaves_its_padding_out(batches, monkeypatch):
    learner, given = task(), []
    encode = learner.model.encode
    monkeypatch.setattr(learner.model, "encode", lambda *arguments: given.append(arguments) or encode(*arguments))
    monkeypatch.setattr(learner, "log_dict", lambda *_, **__: None)
    learner._trainer = type("Trainer", (), {"testing": False})
    learner.eval()
    with torch.no_grad():
        learner.validation_step(batches["padded"], 0)
    ((*_, mask0, mask1),) = given
    assert torch.equal(mask0, batches["padded"]["mask0"])
    assert torch.equal(mask1, batches["padded"]["mask1"])


def test_validation_measures_poses(photos, tmp_path):
    data = MadeScenesData(str(photos), str(photos), size=(96, 128), batch_size=1, length=1, val_length=4, num_workers=0)
    (result,) = trainer(tmp_path).validate(MatchingTask(init_from="tiny"), data, verbose=False)
    assert {"val/pose_auc@5", "val/pose_auc@10", "val/pose_auc@20", "val/prec@5e-4", "val/matches"} <= result.keys()
    assert not any("right" in key or "val/auc" in key for key in result)
    assert 0 <= result["val/pose_auc@5"] <= result["val/pose_auc@20"] <= 1
    assert result["val/prec@5e-4"] > 0.2
    assert result["val/recall"] > 0.3


def test_validation_judges_poses_in_stored_pixels(monkeypatch):
    seen = []
    monkeypatch.setitem(protocols.ESTIMATORS, "opencv", ("", lambda *arguments: seen.append(arguments)))
    points, K = np.array([[10.0, 20], [30, 5]]), np.array([[100.0, 0, 31.5], [0, 100, 23.5], [0, 0, 1]])
    double = np.array([[2, 0, 0.5], [0, 2, 0.5], [0, 0, 1]])
    T = np.eye(4)
    T[0, 3] = 1
    found = {"keypoints0": torch.tensor(points), "keypoints1": torch.tensor(points), "batch_indexes": torch.zeros(2)}
    geometry = {"K0": K, "K1": K, "T_0to1": T}
    for more in ({}, {"to_stored0": double, "to_stored1": np.eye(3)}):
        batch = {name: torch.tensor(matrix)[None] for name, matrix in (geometry | more).items()}
        batch |= {"supervision": ["depth"], "image0": torch.zeros(1, 1, 48, 64)}
        MatchingMetrics().update(batch, found)
    as_given, stored = seen
    np.testing.assert_array_equal(as_given[0], points)
    np.testing.assert_allclose(stored[0], 2 * points + 0.5)
    np.testing.assert_allclose(stored[1], points)
    np.testing.assert_allclose(stored[2], [[200, 0, 63.5], [0, 200, 47.5], [0, 0, 1]])
    np.testing.assert_allclose(stored[3], K)


def test_published_schedule(photos, tmp_path):
    """Of 6e-3 for 64 pairs a step: with 2 pairs 1/32 of it, a warm-up 32 times as long, halved when its epochs begin."""
    learner = task(
        learning_rate=6.4e-2,
        warmup_steps=1,
        warmup_start=0.1,
        schedule="multistep",
        milestones=(2, 3),
        canonical_batch=8,
    )
    rates = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    data = MadeScenesData(str(photos), str(photos), size=(32, 32), batch_size=2, length=4, val_length=1, num_workers=0)
    fitting = trainer(tmp_path, Watch(), max_epochs=4, limit_val_batches=0)
    fitting.fit(learner, data)
    # 2 of 8 pairs: a rate of 1.6e-2 after 4 steps; epochs of 2 steps, so it falls at steps 4 and 6.
    highest = 1.6e-2
    rise = [highest * (0.1 + 0.9 * k / 4) for k in (0, 1, 2, 3)]
    # What is seen after a step is the next one's.
    expected = [*rise, highest / 2, highest / 2, highest / 4, highest / 4][1:]
    assert rates[: len(expected)] == pytest.approx(expected)


def test_two_processes_are_one_that_accumulates(photos, tmp_path):
    """Ten steps, by the command with a process for each of two devices, and by one process with the same micro-batches."""
    settings = {"learning_rate": 1e-3, "warmup_steps": 2, "fine_matches": 6}
    sections = {"learning_rate": "optimization", "warmup_steps": "optimization", "fine_matches": "loss"}
    options = {"size": (64, 64), "batch_size": 1, "length": 10, "val_length": 1, "num_workers": 0, "homographies": 0.5}
    arguments = [
        "fit",
        "--model=quadtree_attention.tasks.matching.module.MatchingTask",
        f"--model.options={json.dumps(SMALL)}",
        *(f"--model.{sections[key]}.{key}={value}" for key, value in settings.items()),
        "--data=quadtree_attention.data.matching.made_scenes.MadeScenesData",
        f"--data.train_folder={photos}",
        f"--data.val_folder={photos}",
        *(f"--data.{key}={json.dumps(value)}" for key, value in options.items()),
        "--seed_everything=0",
        "--trainer.accelerator=cpu",
        "--trainer.devices=2",
        "--trainer.strategy=ddp",
        "--trainer.max_steps=10",
        "--trainer.max_epochs=-1",
        "--trainer.limit_val_batches=0",
        "--trainer.logger=false",
        "--trainer.enable_progress_bar=false",
        f"--trainer.default_root_dir={tmp_path}",
        "--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint",
        f"--trainer.callbacks.dirpath={tmp_path}",
        "--trainer.callbacks.filename=last",
        "--trainer.callbacks.every_n_train_steps=10",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-m", "quadtree_attention", *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    checkpoint = read_checkpoint(tmp_path / "last.ckpt")
    assert checkpoint["global_step"] == 10
    one = task(**settings)
    before = {name: p.detach().clone() for name, p in one.named_parameters()}
    data = MadeScenesData(str(photos), str(photos), **options)
    fitting = trainer(tmp_path, max_steps=10, accumulate_grad_batches=2, limit_val_batches=0)
    fitting.fit(one, data)
    assert fitting.global_step == 10
    # Running averages of batch norm are those of the first process's batches alone; parameters are those of all.
    for name, p in one.named_parameters():
        torch.testing.assert_close(checkpoint["state_dict"][name], p.detach(), rtol=1e-3, atol=2e-5, msg=name)
    assert any((p - before[name]).abs().max() > 1e-3 for name, p in one.named_parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"schedule": "linear"}, "schedule is 'linear', expected one of cosine, multistep, polynomial"),
        ({"pairs": "few"}, "pairs is 'few'"),
        ({"pairs": "sparse", "coarse": "cross_entropy"}, "expected dense, or sparse with focal"),
        ({"fine_percent": 1.5}, "fine_percent is 1.5, expected a share"),
        ({"fine_truths": -1}, "fine_truths is -1, expected at least 0"),
        (
            {"options": {"matching": "softmax"}},
            "matching is 'softmax', expected one of dual_softmax, optimal_transport",
        ),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        made(MatchingTask, **arguments)


@pytest.mark.parametrize("name", ["indoor", "outdoor"])
def test_the_recipes_train_on_made_up_scenes(photos, tmp_path, monkeypatch, name):
    """Both of the published trainings with a small network, their files found in their published places."""
    maker = SceneMaker(sorted(photos.iterdir()), 1)
    recipe = Path(__file__).parents[3] / "recipes" / f"loftr_{name}.yaml"
    monkeypatch.chdir(tmp_path)
    if name == "indoor":
        write_scannet("data/scannet", maker, 2, 2, (48, 64))
        shutil.copytree("data/scannet/train", "data/scannet/test")
        shutil.copytree("data/scannet/index/scene_data/train", "assets/scannet_test_1500")
        shutil.copy("data/scannet/index/intrinsics.npz", "assets/scannet_test_1500")
        shutil.copy(
            "data/scannet/index/scene_data/train_list/scannet_all.txt", "assets/scannet_test_1500/scannet_test.txt"
        )
        small = ["--data.init_args.size=[64,48]", "--data.init_args.train.min_overlap=0.1"]
    else:
        write_megadepth("data/megadepth", maker, 2, 2, (48, 64))
        shutil.copytree("data/megadepth/train", "data/megadepth/test")
        index = Path("data/megadepth/index")
        shutil.copytree(index / "scene_info_0.1_0.7", index / "scene_info_val_1500")
        shutil.copy(index / "trainvaltest_list" / "train_list.txt", index / "trainvaltest_list" / "val_list.txt")
        small = ["--data.init_args.longest=64", "--data.init_args.val_longest=64"]
    common = [
        f"--config={recipe}",
        f"--model.init_args.options={json.dumps(SMALL)}",
        "--data.init_args.per_scene=2",
        "--data.init_args.num_workers=0",
        *small,
        "--trainer.accelerator=cpu",
        "--trainer.precision=32-true",
        "--trainer.num_sanity_val_steps=0",
        "--trainer.logger=false",
        "--trainer.enable_progress_bar=false",
    ]
    callbacks = yaml.safe_load(recipe.read_text())["trainer"]["callbacks"][:-1]  # the last one needs a logger
    common.append(f"--trainer.callbacks={json.dumps(callbacks)}")
    assert main(["fit", *common, "--trainer.max_epochs=1"]) == 0
    first = read_checkpoint(tmp_path / "runs" / f"loftr_{name}" / "last.ckpt")
    assert (first["epoch"], first["global_step"]) == (0, 4)
    # The rate that is published, scaled to one pair a step instead of 64, at the very beginning of its warm-up.
    rate = {"indoor": 6e-3, "outdoor": 8e-3}[name] / 64
    start, warmup = {"indoor": (0.0, 4800 * 64), "outdoor": (0.1, 1875 * 64)}[name]
    (group, *_) = first["optimizer_states"][0]["param_groups"]
    assert group["lr"] == pytest.approx(rate * (start + (1 - start) * 4 / warmup))
    assert group["weight_decay"] == 0.1
    resume = f"--ckpt_path=runs/loftr_{name}/last.ckpt"
    assert main(["fit", *common, "--trainer.max_epochs=2", resume]) == 0
    assert read_checkpoint(tmp_path / "runs" / f"loftr_{name}" / "last.ckpt")["global_step"] == 8
