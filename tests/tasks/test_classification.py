"""Training of classifiers: losses and rates, learning, resuming, several processes, checkpoints."""

import json
import os
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from PIL import Image
from tests.tasks.training import LIGHTNING, made, rates, trainer

from quadtree_attention.__main__ import main
from quadtree_attention.data.recognition.classification import ClassificationData
from quadtree_attention.models.classifier import level_weights
from quadtree_attention.predict.classification import Classifier
from quadtree_attention.tasks.classification import ClassificationTask, classification_loss
from quadtree_attention.weights import load, read_checkpoint

pytestmark = [  # the latter two: timm leaves files open
    LIGHTNING,
    pytest.mark.filterwarnings("ignore:unclosed file", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
SMALL = {"depths": [1, 1, 1, 1], "embed_dims": [8, 8, 16, 16], "num_heads": [1, 1, 2, 2], "mlp_ratios": [2, 2, 2, 2]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Bright and dark squares."""
    root = tmp_path_factory.mktemp("squares")
    for split, count in (("train", 8), ("validation", 3), ("test", 3)):
        for label, name in enumerate(("dark", "bright")):
            (root / split / name).mkdir(parents=True)
            for n in range(count):
                pixels = np.random.default_rng([n, label]).integers(0, 128, (36, 40, 3)) + 127 * label
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{n}.png")
    return root


def task(**changes):
    pl.seed_everything(0, verbose=False)
    options = {"preset": "quadtree_b0", "num_classes": 2, "options": SMALL, "learning_rate": 3e-3, "warmup_epochs": 0.5}
    return made(ClassificationTask, **{**options, **changes})


def data(folder, **changes):
    return ClassificationData(
        str(folder), **{"input_size": (3, 32, 32), "batch_size": 4, "num_workers": 0, "scale": (0.5, 1.0), **changes}
    )


def test_loss_is_cross_entropy():
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 3, 0])
    logs = logits.log_softmax(1)
    torch.testing.assert_close(classification_loss(logits, labels), -logs[range(6), labels].mean())
    soft = torch.nn.functional.one_hot(labels, 4) * 0.8 + 0.05
    want = -(soft * logs).sum(1).mean()
    torch.testing.assert_close(classification_loss(logits, labels, 0.2), want)
    torch.testing.assert_close(classification_loss(logits, soft, 0.2), want)  # smooth already
    assert classification_loss(logits.bfloat16(), labels).dtype == torch.float32


def test_rate_rises_and_falls():
    """A warm-up of 5 of 300 epochs, as PVTv2's; the cosine counts from the first step."""
    learner = task(warmup_epochs=5, warmup_start=1e-3, end=0.1)
    found = rates(learner, (0, 250, 15_000, 30_000, 40_000), estimated_stepping_batches=30_000)
    risen = (0.1 + 0.45 * (1 + np.cos(np.pi * 250 / 30_000))) * (1e-3 + 0.999 * 0.5)
    assert found == pytest.approx([1e-3, risen, 0.55, 0.1, 0.1])


def test_it_learns_and_its_checkpoint_classifies(folder, tmp_path):
    learner = task(mixup=0.2, cutmix=0.0)
    train = trainer(tmp_path, ModelCheckpoint(tmp_path, "last"), EMAWeightAveraging(decay=0.8), max_epochs=8)
    train.fit(learner, data(folder, re_prob=0.0, color_jitter=0.0, auto_augment=None))
    assert train.callback_metrics["val/top1"] == 1
    (result,) = train.test(learner, data(folder), verbose=False)
    assert set(result) == {"test/loss", "test/top1", "test/top5"}
    assert result["test/top5"] == 1
    model = load(tmp_path / "last.ckpt", "classifier")
    config = model.config
    assert config.labels == ["bright", "dark"]
    assert (config.model, list(config.input_size), config.crop_pct) == ("quadtree_b0", [3, 32, 32], 0.9)
    found = Classifier(model, "cpu").classify(folder / "test" / "dark" / "0.png")
    assert found.labels == ("dark", "bright")
    assert found.probabilities.sum() == pytest.approx(1)
    again = task(init_from=str(tmp_path / "last.ckpt"))
    torch.testing.assert_close(again.model.state_dict(), model.state_dict())
    other = task(init_from=str(tmp_path / "last.ckpt"), num_classes=7)  # keeps its own head
    assert other.model.head.out_features == 7
    torch.testing.assert_close(other.model.stages.state_dict(), model.stages.state_dict())
    with pytest.raises(ValueError, match=r"last\.ckpt: weights do not fit the model: "):
        task(init_from=str(tmp_path / "last.ckpt"), options={**SMALL, "depths": [1, 1, 1, 2]})


def test_a_cut_off_training_goes_on_as_if_it_never_was(folder, tmp_path):
    settings = {"options": {**SMALL, "drop_path_rate": 0.2}}
    whole = task(**settings)
    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=3, save_top_k=-1)
    trainer(tmp_path, every, max_epochs=3).fit(whole, data(folder))
    resumed = task(**settings)
    pl.seed_everything(99, verbose=False)
    again = trainer(tmp_path, ModelCheckpoint(tmp_path / "again", "{step}"), max_epochs=3)
    again.fit(resumed, data(folder), ckpt_path=tmp_path / "step=6.ckpt", weights_only=False)  # amid the second epoch
    for (name, expected), got in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")


def test_two_processes_are_one_that_accumulates(folder, tmp_path):
    """By the command, with a process for each of two devices; their micro-batches are other halves of the same images."""
    states = []
    for name, options in (
        ("two", ["--trainer.devices=2", "--trainer.strategy=ddp"]),
        ("one", ["--trainer.accumulate_grad_batches=2"]),
    ):
        arguments = [
            "fit",
            "--model=quadtree_attention.tasks.classification.ClassificationTask",
            "--model.num_classes=2",
            f"--model.options={json.dumps(SMALL)}",
            "--model.mixup=0",
            "--model.cutmix=0",
            "--data=quadtree_attention.data.recognition.classification.ClassificationData",
            f"--data.root={folder}",
            "--data.input_size=[3,32,32]",
            "--data.batch_size=2",
            "--data.num_workers=0",
            "--seed_everything=3",
            "--trainer.accelerator=cpu",
            "--trainer.devices=1",
            "--trainer.max_epochs=2",
            "--trainer.logger=false",
            "--trainer.enable_progress_bar=false",
            "--trainer.num_sanity_val_steps=0",
            f"--trainer.default_root_dir={tmp_path / name}",
            "--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint",  # writes to default_root_dir
            "--trainer.callbacks.filename=last",
            *options,
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        done = subprocess.run(
            [sys.executable, "-m", "quadtree_attention", *arguments], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        checkpoint = read_checkpoint(tmp_path / name / "last.ckpt")
        assert checkpoint["global_step"] == 8
        states.append(checkpoint["state_dict"])
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"preset": "quadtree_b9"},
            "model is 'quadtree_b9', expected quadtree_b0, .*, or another name that timm knows",
        ),
        ({"options": {"depht": 3}}, "options do not fit quadtree_b0: .*depht"),
        ({"num_classes": 1}, "num_classes is 1, expected at least 2"),
        ({"init_from": "outdoor"}, "outdoor is for matching, expected tiny, classify_tiny, quadtree_b0, "),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        task(**arguments)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"num_classes": 3}, {}, "the data has 2 classes, expected num_classes, 3; set --model.num_classes"),
        ({}, {"batch_size": 3}, "a batch has 3 images, expected an even number for mixup and cutmix"),
        ({"options": {**SMALL, "in_chans": 1}}, {}, r"images have shape \(4, 3, 32, 32\), expected \[B, 1, H, W\]"),
    ],
)
def test_data_that_does_not_fit(folder, tmp_path, changes, options, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, max_epochs=1, limit_val_batches=0).fit(task(**changes), data(folder, **options))


@pytest.mark.parametrize(("n", "drop_path", "clip"), [(0, 0.1, None), (4, 0.3, 1.0)])
def test_recipes_of_imagenet(n, drop_path, clip, capsys):
    recipes = Path(__file__).parents[2] / "recipes"
    files = [f"--config={recipes / name}.yaml" for name in ("imagenet", f"imagenet_quadtree_b{n}")]
    with pytest.raises(SystemExit):
        main(["fit", *files, "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    learner = config["model"]["init_args"]
    assert (learner["preset"], learner["options"]) == (f"quadtree_b{n}", {"drop_path_rate": drop_path})
    rate, decay = (learner["optimization"][name] for name in ("learning_rate", "weight_decay"))
    assert (rate, decay, learner["mixup"], learner["cutmix"]) == (
        1e-3,
        0.05,
        0.8,
        1.0,
    )
    assert config["data"]["init_args"]["repeats"] == 3
    assert (config["trainer"]["max_epochs"], config["trainer"]["gradient_clip_val"]) == (300, clip)
    assert config["trainer"]["default_root_dir"] == f"runs/imagenet_quadtree_b{n}"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.preset=resnet9", "quadtree: model is 'resnet9', expected quadtree_b0, "),
        ("--model.learning_rat=3", "--model.learning_rat is unknown; see quadtree fit --help"),
        ("--model.learning_rate=3", "--model.learning_rate is unknown; it is --model.optimization.learning_rate now"),
        ("--model.optimization.rate=3", "--model.optimization.rate is unknown; see quadtree fit --help"),
        ("--trainer.max_epochs=x", "--trainer.max_epochs is x, expected a whole number; see quadtree fit --help"),
        ("--ckpt_path={folder}/train/dark/0.png", "dark/0.png is not a checkpoint that training wrote, or is damaged"),
        ("--data.batch_size=3", "a batch has 3 images, expected an even number for mixup and cutmix"),
        (
            "--data.root={folder}/empty",
            "empty has no images of 'train', expected a folder train or a file train.tar; it has nothing",
        ),
        ("--model.mixup=-1", "mixup is -1.0, expected at least 0"),
        ("--model.optimization.warmup_epochs=null", "--model.optimization.warmup_epochs is None, expected a number"),
        ("--model.optimization.learning_rate=0", "learning_rate is 0.0, expected above 0 and at most 100"),
        ("--model.options=x", "--model.options is x, expected a mapping"),
        ("--model.init_from=none.safetensors", "none.safetensors"),
        ("--data.auto_augment=banana", "auto_augment is 'banana', expected one of timm's"),
        ("--data.batch_size=0", "batch_size is 0, expected at least 1"),
        ("--data.num_workers=-1", "num_workers is -1, expected at least 0"),
        ("--data.re_mode=banana", "re_mode is 'banana', expected const, rand or pixel"),
        ("--trainer.accelerator=banana", "--trainer: "),
        ("--trainer.max_time=x", "--trainer: "),
        ("--trainer.devices=0", "--trainer: "),
        ("--trainer.accumulate_grad_batches=0", "--trainer.accumulate_grad_batches is 0, expected at least 1"),
        ("--trainer.callbacks=banana", "--trainer.callbacks is banana, expected a list or the path of a class"),
        ("--seed_everything=-3", "--seed_everything is -3, expected at least 0"),
        ("--ckpt_path=", "--ckpt_path is empty"),
        ("--config=none.yaml", "none.yaml does not exist, expected a recipe"),
        ("--config={folder}", "is a folder, expected a recipe"),
        ("--model=banana", "--model is banana, expected the path of a class, such as package.module.Class"),
    ],
)
def test_mistakes_of_a_command_end_in_one_line(folder, tmp_path, option, message, capsys):
    (folder / "empty").mkdir(exist_ok=True)
    recipe = Path(__file__).parents[2] / "recipes" / "classify_tiny_clothing.yaml"
    quick = ["--model.num_classes=2", "--data.num_workers=1", "--data.batch_size=16", "--trainer.logger=false"]
    quick += [
        "--model.mixup=0.2",
        "--trainer.enable_progress_bar=false",
        f"--trainer.default_root_dir={tmp_path}",
        "--trainer.accelerator=cpu",
    ]
    option = option.format(folder=folder)
    (tmp_path / "config.yaml").touch()  # of an earlier run in this folder
    assert main(["fit", f"--config={recipe}", f"--data.root={folder}", *quick, option]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("quadtree: ")
    assert message in error
    assert "Traceback" not in error
    assert len(error) < 400
    assert "Namespace" not in error


def test_labels_beyond_the_classes(folder, tmp_path):
    with pytest.raises(ValueError, match="has a label 2, expected labels below num_classes, 2"):
        task(num_classes=2).training_step((torch.zeros(2, 3, 32, 32), torch.tensor([0, 2])), 0)


def test_level_weights_learn_at_their_own_rate(folder, tmp_path):
    learner = task(level_rate=10.0, weight_decay=0.3)
    train = trainer(tmp_path, max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    train.fit(learner, data(folder))
    groups = {(group["initial_lr"], group["weight_decay"]): group for group in train.optimizers[0].param_groups}
    matrices, vectors, levels = (groups[key] for key in ((3e-3, 0.3), (3e-3, 0.0), (3e-2, 0.0)))
    assert len(groups) == 3
    assert [tuple(p.shape) for p in levels["params"]] == [(4,), (3,), (2,), (1,)]
    assert sum(len(group["params"]) for group in (matrices, vectors, levels)) == len(list(learner.parameters()))
    plain = task(preset="pvt_v2_b0", options=SMALL)
    assert level_weights(plain) == []
