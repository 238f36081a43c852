"""quadtree fit, validate and test: where checkpoints go, what ends a run, and what goes on from it."""

import shutil
import signal

import pytest
import torch
from tests.tasks.training import LIGHTNING, write_recipe, write_squares

from quadtree_attention.__main__ import main
from quadtree_attention.tasks.checkpoints import read_training

pytestmark = [
    LIGHTNING,
    pytest.mark.filterwarnings("ignore:unclosed file", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
EMA = [{"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.8}}]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_squares(tmp_path_factory.mktemp("squares"))


@pytest.fixture
def recipe(root, tmp_path):
    return write_recipe(tmp_path / "recipe.yaml", root, callbacks=EMA)


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory):
    """The folder of a training that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(["fit", f"--config={write_recipe(folder / 'recipe.yaml', root, callbacks=EMA)}"]) == 0
    return folder / "run"


def same(path, other):
    one, two = (read_training(name) for name in (path, other))
    assert one["global_step"] == two["global_step"]
    for name, value in two["state_dict"].items():
        torch.testing.assert_close(one["state_dict"][name], value, rtol=0, atol=0)
    return True


def sending(number, at, validating=False):
    return [
        *EMA,
        {
            "class_path": "tests.tasks.training.SendSignal",
            "init_args": {"number": int(number), "at": at, "validating": validating},
        },
    ]


@pytest.mark.parametrize(
    ("number", "at", "validating", "steps"),
    [
        (signal.SIGTERM, 5, False, 6),
        (signal.SIGINT, 5, False, 6),
        (signal.SIGINT, 7, False, 8),  # the last batch of an epoch
        (signal.SIGTERM, 1, True, 8),
    ],
)
def test_a_signal_ends_a_training_with_a_checkpoint(root, tmp_path, trained, capsys, number, at, validating, steps):
    """The run that goes on ends with the very weights of one that was not interrupted."""
    interrupted = write_recipe(tmp_path / "recipe.yaml", root, callbacks=sending(number, at, validating))
    with pytest.raises(SystemExit) as end:
        main(["fit", f"--config={interrupted}"])
    assert end.value.code == 128 + number
    last = tmp_path / "run" / "last.ckpt"
    assert f"stopped; go on from {last} with --resume auto" in capsys.readouterr().err
    assert read_training(last)["global_step"] == steps
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert (
        main(["fit", f"--config={write_recipe(tmp_path / 'recipe.yaml', root, callbacks=EMA)}", "--resume=auto"]) == 0
    )
    assert same(last, trained / "last.ckpt")


def test_a_training_that_is_cut_off_again_and_again(root, tmp_path, trained):
    """After the last batch of an epoch, and in the next one."""
    for at in (3, 4, 5):
        recipe = write_recipe(tmp_path / "recipe.yaml", root, callbacks=sending(signal.SIGTERM, at))
        with pytest.raises(SystemExit):
            main(["fit", f"--config={recipe}", "--resume=auto"])
    recipe = write_recipe(tmp_path / "recipe.yaml", root, callbacks=EMA)
    assert main(["fit", f"--config={recipe}", "--resume=auto"]) == 0
    assert same(tmp_path / "run" / "last.ckpt", trained / "last.ckpt")


def test_what_a_training_says(root, tmp_path, capsys):
    recipe = write_recipe(tmp_path / "recipe.yaml", root, callbacks=EMA)
    assert main(["fit", f"--config={recipe}"]) == 0
    out, err = capsys.readouterr()
    head, *rows = [line.split() for line in out.splitlines()]
    assert head == ["validation", "last", "best", "at", "step"]
    assert [row[0] for row in rows] == ["loss", "top1", "top5"]
    assert float(rows[0][2]) <= float(rows[0][1])
    assert float(rows[1][2]) >= float(rows[1][1])
    first, last = err.splitlines()  # nothing else
    assert first.startswith("quadtree: ClassificationTask, 0.02 M weights to learn, on cpu; checkpoints in ")
    assert last.startswith("quadtree: done after 12 steps; the checkpoint is ")
    assert last.endswith(f"next: quadtree convert {tmp_path / 'run' / 'last.ckpt'} NAME.safetensors --half")


def test_a_run_begins_where_there_is_no_checkpoint(recipe, trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    before = (tmp_path / "run" / "last.ckpt").read_bytes()
    for arguments in ([], [f"--ckpt_path={trained / 'last.ckpt'}"]):  # of another folder
        assert main(["fit", f"--config={recipe}", *arguments]) == 2
        assert (
            "go on with it by --resume auto, or begin in another folder with --trainer.default_root_dir"
            in capsys.readouterr().err
        )
    assert (tmp_path / "run" / "last.ckpt").read_bytes() == before
    assert (
        main(
            ["fit", f"--config={recipe}", f"--trainer.default_root_dir={tmp_path / 'other'}", "--trainer.max_epochs=1"]
        )
        == 0
    )
    assert read_training(tmp_path / "other" / "last.ckpt")["global_step"] == 4
    assert (tmp_path / "run" / "last.ckpt").read_bytes() == before
    assert main(["fit", f"--config={recipe}", "--resume=auto", f"--ckpt_path={trained / 'last.ckpt'}"]) == 2
    assert "exclude each other" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["validate", "test"])
def test_weights_that_nobody_trained_are_not_measured(recipe, trained, command, capsys):
    assert main([command, f"--config={recipe}"]) == 2
    assert (
        f"{command} would measure random weights, since no checkpoint is named; expected --ckpt_path FILE.ckpt"
        in capsys.readouterr().err
    )
    assert main([command, f"--config={recipe}", f"--model.init_from={trained / 'last.ckpt'}"]) == 0
    assert main([command, f"--config={recipe}", f"--ckpt_path={trained / 'last.ckpt'}"]) == 0


def test_a_checkpoint_keeps_its_settings(recipe, trained, tmp_path, capsys):
    last = f"--ckpt_path={trained / 'last.ckpt'}"
    assert main(["fit", f"--config={recipe}", last, "--model.optimization.learning_rate=0.1"]) == 2
    assert "learning_rate is 0.003 in " in capsys.readouterr().err
    recipe.write_text(recipe.read_text().replace("learning_rate: 0.003", "learning_rate: 0.1"))
    assert main(["fit", f"--config={recipe}", last, "--trainer.max_epochs=4"]) == 0
    assert (
        "has settings of its own, which are kept: optimization.learning_rate 0.003 (not 0.1)" in capsys.readouterr().err
    )
    assert read_training(tmp_path / "run" / "last.ckpt")["hyper_parameters"]["optimization"]["learning_rate"] == 0.003


def test_a_checkpoint_of_another_task(trained, tmp_path, capsys):
    task = "quadtree_attention.tasks.segmentation.SegmentationTask"
    arguments = [f"--model={task}", f"--ckpt_path={trained / 'last.ckpt'}", f"--trainer.default_root_dir={tmp_path}"]
    assert main(["fit", *arguments]) == 2
    assert "is a checkpoint of ClassificationTask, expected one of SegmentationTask" in capsys.readouterr().err


def test_a_checkpoint_of_other_classes(root, recipe, trained, tmp_path, capsys):
    """The same number of classes, but another first one."""
    for split in ("train", "validation", "test"):
        shutil.copytree(root / split / "dark", tmp_path / "squares" / split / "dark")
        shutil.copytree(root / split / "bright", tmp_path / "squares" / split / "grey")
    for command in ("fit", "validate", "test"):
        assert (
            main(
                [
                    command,
                    f"--config={recipe}",
                    "--trainer.max_epochs=4",
                    f"--data.root={tmp_path / 'squares'}",
                    f"--ckpt_path={trained / 'last.ckpt'}",
                ]
            )
            == 2
        )
        assert "class 0 of the data is 'dark', but 'bright' in the checkpoint" in capsys.readouterr().err
