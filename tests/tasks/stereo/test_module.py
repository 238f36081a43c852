import math
from dataclasses import replace

import cv2
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tests.tasks.training import LIGHTNING, made, trainer

from quadtree_attention.__main__ import main
from quadtree_attention.data.stereo.synthetic import StereoData, Views
from quadtree_attention.models.sttr import STTR, STTR_PRESETS
from quadtree_attention.predict.stereo import StereoMatcher
from quadtree_attention.tasks.stereo.module import StereoTask
from quadtree_attention.weights import load, save

pytestmark = LIGHTNING

SMALL = {
    "stem_dims": [8, 8, 8], "stage_dims": [16, 16], "blocks_per_stage": 1, "pool_dim": 4, "growth": 8, "dense_layers": 2, "dim": 16,
    "num_heads": 2, "num_layers": 1, "topk": [4, 4, 4], "context_blocks": 1, "context_dim": 4, "context_expansion": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for n in range(3):
        coarse = rng.integers(0, 256, (64, 96, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{n}.png"), cv2.resize(coarse, (192, 128), interpolation=cv2.INTER_CUBIC))
    return folder


def task(**changes):
    pl.seed_everything(0, verbose=False)
    return made(StereoTask, **{"options": SMALL, "learning_rate": 3e-3, "warmup_steps": 2, **changes})


def data(photos, **changes):
    return StereoData(
        str(photos),
        str(photos),
        **{"size": (32, 64), "batch_size": 2, "length": 8, "val_length": 2, "num_workers": 0, **changes},
    )


def checkpoints(folder, every):
    return ModelCheckpoint(folder, "{step}", every_n_train_steps=every, save_top_k=-1)


def test_one_batch_is_learnt(photos):
    easy = Views(same_light=1.0, noise=0, blurred=0, shift=0, tilt=0)
    batch = next(iter(data(photos, views=easy).train_dataloader()))
    learner = task()
    optimizer = torch.optim.AdamW(learner.parameters(), 5e-3)
    responses, disparities = [], []
    for _ in range(40):
        parts, _, _ = learner.losses(batch)
        optimizer.zero_grad()
        parts["loss"].backward()
        optimizer.step()
        responses.append(float(parts["response"].detach()))
        disparities.append(float(parts["disparity"].detach()))
    assert np.mean(responses[-5:]) < 0.6 * responses[0]
    assert np.mean(disparities[-5:]) < 0.6 * disparities[0]


def test_weights_of_the_losses(photos):
    batch = next(iter(data(photos).train_dataloader()))
    parts, _, _ = task(
        response_weight=2.0, raw_weight=0.5, disparity_weight=0.1, occlusion_weight=3.0, fine_weight=0.7
    ).losses(batch)
    want = 2 * parts["response"] + 0.5 * parts["raw"] + 0.1 * parts["disparity"] + 3 * parts["occlusion"]
    want = want + 0.7 * parts["fine"]
    torch.testing.assert_close(parts["loss"], want)


@pytest.mark.parametrize("length", [{"max_steps": 6}, {"max_epochs": 3}])
def test_a_cut_off_training_goes_on_as_if_it_never_was(photos, tmp_path, length):
    whole = task()
    trainer(tmp_path, checkpoints(tmp_path / "whole", 3), **length).fit(whole, data(photos))
    resumed = task()
    pl.seed_everything(99, verbose=False)
    trainer(tmp_path, checkpoints(tmp_path / "resumed", 3), **length).fit(
        resumed, data(photos), ckpt_path=tmp_path / "whole" / "step=3.ckpt", weights_only=False
    )
    for (name, expected), got in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")


def test_a_checkpoint_sees_depth(photos, tmp_path, capsys):
    learner = task()
    trainer(tmp_path, checkpoints(tmp_path, 2), max_steps=2).fit(learner, data(photos))
    path = tmp_path / "step=2.ckpt"
    model = load(path, "stereo")
    assert model.config == learner.model.config
    for name, value in learner.model.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=0)
    found = StereoMatcher(model, "cpu").match(photos / "0.png", photos / "0.png")
    assert found.disparity.shape == (128, 192)
    again = StereoTask(options=SMALL, init_from=str(path))
    torch.testing.assert_close(again.model.state_dict(), learner.model.state_dict(), rtol=0, atol=0)
    assert main(["convert", str(path), str(tmp_path / "mine.safetensors"), "--half"]) == 0
    assert "parameters" in capsys.readouterr().out
    assert load(tmp_path / "mine.safetensors", "stereo").config == model.config
    with pytest.raises(ValueError, match="is of a stereo network, expected a matcher"):
        load(tmp_path / "mine.safetensors", "matcher")


def test_validation_measures(photos, tmp_path):
    (result,) = trainer(tmp_path, max_steps=1).validate(task(), data(photos), verbose=False)
    names = (
        "loss",
        "response",
        "raw",
        "disparity",
        "occlusion",
        "fine",
        "epe",
        "epe_visible",
        "bad@1",
        "bad@2",
        "bad@3",
        "d1",
        "iou",
    )
    assert set(result) == {f"val/{name}" for name in names}
    assert all(math.isfinite(value) for value in result.values())


def test_recomputing_is_an_option(photos):
    assert task(recompute=True).model.transformer.recompute
    assert not task().model.transformer.recompute


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "huge"}, "preset is 'huge', expected one of sttr, quadtree, tiny"),
        ({"options": {"depth": 3}}, "options do not fit the model: .*depth"),
        ({"options": {"stride": 3}}, "stride is 3, expected a multiple of resolution"),
        ({"options": SMALL, "init_from": "tiny"}, "tiny: weights do not fit the model: "),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        StereoTask(**arguments)


def test_train_only_some_parts(tmp_path):
    """What is not trained keeps weights and statistics; weights without fine matching can be what it starts from."""
    torch.manual_seed(0)
    without = tmp_path / "without.safetensors"
    save(STTR(replace(STTR_PRESETS["tiny"], fine_dim=0)), without)
    task = StereoTask("tiny", {"fine_dim": 8}, init_from=str(without), train_only=["fine", "context"])
    task.train()
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    for key, value in load(without, "stereo").state_dict().items():
        assert torch.equal(before[key], value)
    left, right = torch.rand(2, 1, 3, 32, 64)
    nothing = torch.zeros(1, 32, 64, dtype=torch.bool)
    batch = {"left": left, "right": right, "disparity": torch.full((1, 32, 64), 5.0), "occluded": nothing}
    optimizer = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], 0.1)
    task.losses(batch)[0]["loss"].backward()
    optimizer.step()
    changed = {
        key.partition(".")[0] for key, value in task.model.state_dict().items() if not torch.equal(value, before[key])
    }
    assert changed == {"fine", "context"}
    with pytest.raises(ValueError, match="train_only has fin, expected some of features, transformer, fine, context"):
        StereoTask("tiny", train_only=["fin"])
    with pytest.raises(ValueError, match="weights do not fit"):
        StereoTask("tiny", {"dim": 32, "growth": 8}, init_from=str(without))
