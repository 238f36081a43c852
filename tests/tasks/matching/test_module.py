import math
from pathlib import Path

import cv2
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from tests.tasks.training import LIGHTNING, made, rates, trainer

from quadtree_attention.cli import run
from quadtree_attention.data.matching.homography import HomographyData
from quadtree_attention.predict.matching import Matcher
from quadtree_attention.tasks.matching.module import MatchingTask
from quadtree_attention.tasks.matching.sampling import true_matches
from quadtree_attention.tasks.matching.supervision import Supervision
from quadtree_attention.weights import load

pytestmark = LIGHTNING

SMALL = {
    "initial_dim": 16,
    "block_dims": [16, 16, 32],
    "num_layers": 1,
    "num_heads": 2,
    "fine_heads": 2,
    "topk": [4, 4],
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for n in range(3):
        coarse = rng.integers(0, 256, (24, 32), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{n}.png"), cv2.resize(coarse, (256, 192), interpolation=cv2.INTER_CUBIC))
    return folder


def task(**changes):
    pl.seed_everything(0, verbose=False)
    return made(MatchingTask, **{"options": SMALL, "learning_rate": 3e-3, "warmup_steps": 2, **changes})


def data(photos, **changes):
    return HomographyData(
        str(photos),
        str(photos),
        **{"size": (64, 64), "batch_size": 2, "length": 8, "val_length": 2, "num_workers": 0, **changes},
    )


def checkpoints(folder, every):
    return ModelCheckpoint(folder, "{step}", every_n_train_steps=every, save_top_k=-1)


def batch_of(photos):
    module = data(photos)
    module.setup("fit")
    return next(iter(module.train_dataloader()))


def test_one_batch_is_learnt(photos):
    batch, learner = batch_of(photos), task()
    optimizer = torch.optim.AdamW(learner.parameters(), 5e-3)
    recalls, fines = [], []
    for _ in range(60):
        parts = learner.losses(batch)
        optimizer.zero_grad()
        parts["loss"].backward()
        optimizer.step()
        recalls.append(float(parts["recall"]))
        fines.append(float(parts["fine"].detach()))
    assert recalls[0] < 0.3
    assert np.mean(recalls[-5:]) > 0.8
    assert np.mean(fines[-5:]) < 0.7 * np.mean(fines[:5])


def test_every_parameter_gets_a_gradient(photos):
    learner = task()
    learner.losses(batch_of(photos))["loss"].backward()
    assert [name for name, p in learner.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_weights_of_the_losses(photos):
    batch = batch_of(photos)
    one, other = (task(coarse_weight=c, fine_weight=f).losses(batch) for c, f in ((1.0, 1.0), (0.5, 3.0)))
    torch.testing.assert_close(one["loss"], one["coarse"] + one["fine"])
    torch.testing.assert_close(other["loss"], 0.5 * one["coarse"] + 3 * one["fine"])


def test_fine_matches_are_drawn_by_image():
    b, row = torch.tensor([0] * 20 + [1] * 3 + [2] * 9), torch.arange(32)
    truth = Supervision(b, row, row, torch.zeros(32, 2), torch.zeros(32, 2), torch.zeros(3, 32, 2))
    drawn, again = (true_matches(truth, 3, 5, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.bincount(drawn[0]).tolist() == [5, 3, 5]
    assert torch.equal(drawn[0], b[drawn[1]])
    assert len(drawn[1].unique()) == 13
    assert torch.equal(drawn[1], again[1])


@pytest.mark.parametrize(
    ("length", "changes", "cut"),
    [
        # Epochs have 4 batches.
        ({"max_steps": 10}, {}, 6),
        ({"max_epochs": 3}, {}, 6),
        ({"max_epochs": 3}, {"canonical_batch": 4}, 5),
        ({"max_epochs": 3}, {"canonical_batch": 4, "schedule": "multistep", "milestones": (1, 2)}, 7),
        ({"max_epochs": 3, "accumulate_grad_batches": 2}, {}, 3),
        ({"max_epochs": 3}, {}, 8),
        ({"max_epochs": 3, "limit_train_batches": 3}, {}, 4),
        ({"max_epochs": 3, "limit_train_batches": 3}, {}, 6),
    ],
)
def test_a_cut_off_training_goes_on_as_if_it_never_was(photos, tmp_path, length, changes, cut):
    changes = {"fine_matches": 5, **changes}  # fewer than there are, so that the draw is repeated too
    whole = task(**changes)
    trainer(tmp_path, checkpoints(tmp_path / "whole", 1), **length).fit(whole, data(photos))
    # Another process would come upon what this step left on the disk.
    resumed = task(**changes)
    pl.seed_everything(99, verbose=False)
    trainer(tmp_path, checkpoints(tmp_path / "resumed", 1), **length).fit(
        resumed, data(photos), ckpt_path=tmp_path / "whole" / f"step={cut}.ckpt", weights_only=False
    )
    for (name, expected), got in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(("devices", "accumulated"), [(1, 1), (1, 3), (4, 1), (4, 3)])
def test_rates_are_scaled_to_the_pairs_of_a_step(devices, accumulated):
    learner = task(learning_rate=0.1, warmup_steps=10, canonical_batch=8, betas=(0.5, 0.6), warmup_start=0.2)
    datamodule = type("Data", (), {"batch_size": 2})
    learner._trainer = type(
        "Trainer",
        (),
        {
            "world_size": devices,
            "accumulate_grad_batches": accumulated,
            "datamodule": datamodule,
            "num_training_batches": 100,
            "estimated_stepping_batches": math.inf,
        },
    )
    scaling = 2 * devices * accumulated / 8
    made = learner.configure_optimizers()
    (group, *_) = made["optimizer"].param_groups
    assert group["initial_lr"] == pytest.approx(0.1 * scaling)
    assert group["betas"] == (0.5, 0.6)
    warmup = int(10 / scaling)
    assert group["lr"] == pytest.approx(0.1 * scaling * 0.2)
    (share, *_) = made["lr_scheduler"]["scheduler"].lr_lambdas
    assert share(1) == pytest.approx(0.2 + 0.8 / warmup)


def test_rates_fall_after_whole_epochs():
    learner = task(warmup_steps=0, schedule="multistep", milestones=(1, 3), decay=0.1)
    found = rates(learner, (0, 3, 4, 11, 12), num_training_batches=7, accumulate_grad_batches=2)
    assert found == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_a_checkpoint_matches_photographs(photos, tmp_path):
    learner = task()
    trainer(tmp_path, checkpoints(tmp_path, 2), max_steps=2).fit(learner, data(photos))
    path = tmp_path / "step=2.ckpt"
    model = load(path, "matcher")
    assert model.config == learner.model.config
    for name, value in learner.model.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=0)
    found = Matcher(model, "cpu").match(photos / "0.png", photos / "0.png", threshold=0.0)
    assert found.keypoints0.shape == found.keypoints1.shape == (len(found), 2)
    again = MatchingTask(options=SMALL, init_from=str(path))
    torch.testing.assert_close(again.model.state_dict(), learner.model.state_dict(), rtol=0, atol=0)


def test_validation_measures_what_matching_gives(photos, tmp_path):
    (result,) = trainer(tmp_path, max_steps=1).validate(task(), data(photos), verbose=False)
    assert {"val/loss", "val/coarse", "val/fine", "val/recall", "val/auc@5", "val/right@3px", "val/matches"} <= set(
        result
    )
    assert all(math.isfinite(value) for value in result.values())
    # tiny finds its way about in pairs that a new network cannot match.
    tiny = MatchingTask(init_from="tiny")
    (better,) = trainer(tmp_path, max_steps=1).validate(
        tiny, data(photos, size=(128, 128), val_length=4), verbose=False
    )
    assert better["val/recall"] > 0.3 > result["val/recall"]


def test_learning_rate_rises_and_falls():
    learner = task(warmup_steps=4, warmup_start=0.2)
    assert rates(learner, (0, 1, 2, 4, 1000)) == pytest.approx([0.2, 0.4, 0.6, 1, 1])
    assert rates(learner, (50, 100, 150), estimated_stepping_batches=100) == pytest.approx([0.5, 0, 0])


@pytest.mark.parametrize("vectors", [False, True])
def test_vectors_decay_only_if_asked_for(vectors, photos, tmp_path):
    learner = task(weight_decay=0.3, decayed="all" if vectors else "matrices")
    learner._trainer = trainer(tmp_path, max_steps=5)
    decays = {
        id(p): group["weight_decay"]
        for group in learner.configure_optimizers()["optimizer"].param_groups
        for p in group["params"]
    }
    assert {decays[id(p)] for p in learner.parameters() if p.dim() <= 1} == {0.3 if vectors else 0.0}
    assert {decays[id(p)] for p in learner.parameters() if p.dim() > 1} == {0.3}
    assert len(decays) == len(list(learner.parameters()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "huge"}, "preset is 'huge', expected one of indoor, outdoor, lite, tiny"),
        ({"options": {"depth": 3}}, "options do not fit the model: .*depth"),
        ({"options": {"fine_window": 4}}, "fine_window is 4, expected an odd number"),
        ({"coarse": "hinge"}, "coarse is 'hinge', expected one of focal, cross_entropy"),
        ({"fine": "hinge"}, "fine is 'hinge', expected one of l2, cross_entropy, both"),
        ({"confidence_floor": 0.0}, "confidence_floor is 0.0, expected above 0"),
        ({"canonical_batch": 0}, "canonical_batch is 0, expected at least 1"),
        ({"fine_matches": 0}, "fine_matches is 0, expected at least 1"),
        ({"options": SMALL, "init_from": "tiny"}, "tiny: weights do not fit the model: "),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        made(MatchingTask, **arguments)


@pytest.mark.parametrize(
    ("name", "attention", "block", "topk"),
    [
        ("linear", "linear", "loftr", None),
        ("sr", "sr", "loftr", None),
        ("quadtree_a", "quadtree_a", "loftr", (16, 8)),
        ("quadtree_b", "quadtree_b", "loftr", (16, 8)),
        ("quadtree_b16_vit", "quadtree_b", "vit", (32, 16)),
    ],
)
def test_variants_are_laid_over_a_recipe(name, attention, block, topk, capsys):
    recipes = Path(__file__).parents[3] / "recipes"
    configs = ["--config", str(recipes / "loftr_variants.yaml"), "--config", str(recipes / "variants" / f"{name}.yaml")]
    with pytest.raises(SystemExit):
        run(["fit", *configs, "--print_config"])
    arguments = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    config = MatchingTask(preset=arguments["preset"], options=arguments["options"]).model.config
    assert (config.attention, config.block, config.d_model) == (attention, block, 128)
    assert topk is None or config.topk == topk
