"""Checkpoints and recipes of the time before tasks had `Optimization`."""

import lightning.pytorch as pl
import pytest
import torch
import yaml
from tests.tasks.training import LIGHTNING, made, write_recipe, write_squares

from quadtree_attention.__main__ import main
from quadtree_attention.models.classifier import level_weights
from quadtree_attention.tasks.checkpoints import read_training
from quadtree_attention.tasks.classification import ClassificationTask
from quadtree_attention.tasks.former import NAMES, name_today, options_today

pytestmark = [
    LIGHTNING,
    pytest.mark.filterwarnings("ignore:unclosed file", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


def as_before(path, network):
    """Rewrite a classifier's checkpoint as the former version wrote it: flat options, and groups of matrices, vectors and level weights, unnamed."""
    content = read_training(path)
    options = content["hyper_parameters"]
    rates = options.pop("optimization")
    rate = rates["learning_rate"]
    options["model"] = options.pop("preset")
    options |= {name: rates[name] for name in ("learning_rate", "weight_decay", "betas", "warmup_epochs", "level_rate")}
    options |= {"min_rate": rates["end"] * rate, "warmup_rate": rates["warmup_start"] * rate}
    named = dict(network.named_parameters())
    levels = {id(p) for p in level_weights(network)}
    parts = {"matrices": [], "vectors": [], "levels": []}
    for name, p in named.items():
        parts["levels" if id(p) in levels else "matrices" if p.dim() > 1 else "vectors"].append(name)
    (state,) = content["optimizer_states"]
    place = {
        name: (n, k)
        for n, g in enumerate(state["param_groups"])
        for name, k in zip(g["param_names"], g["params"], strict=True)
    }
    groups, moments, lrs, count = [], {}, [], 0
    for names in filter(None, parts.values()):
        group = {**state["param_groups"][place[names[0]][0]], "params": list(range(count, count + len(names)))}
        del group["param_names"]
        moments |= {count + n: state["state"][place[name][1]] for n, name in enumerate(names)}
        lrs.append(content["lr_schedulers"][0]["base_lrs"][place[names[0]][0]])
        groups.append(group)
        count += len(names)
    content["optimizer_states"] = [{"state": moments, "param_groups": groups}]
    content["lr_schedulers"][0] |= {"base_lrs": lrs, "_last_lr": [group["lr"] for group in groups]}
    torch.save(content, path)


def test_a_former_checkpoint_goes_on_as_if_nothing_had_changed(tmp_path, capsys):
    root = write_squares(tmp_path / "squares")
    small = {"depths": [1, 1, 1, 1], "embed_dims": [8, 8, 16, 16], "num_heads": [1, 1, 2, 2], "mlp_ratios": [2] * 4}
    recipe = write_recipe(tmp_path / "recipe.yaml", root)
    content = yaml.safe_load(recipe.read_text())
    content["model"]["init_args"] |= {"preset": "quadtree_b0", "options": small}
    content["model"]["init_args"]["optimization"] |= {"level_rate": 3.0}
    recipe.write_text(yaml.safe_dump(content))
    assert main(["fit", f"--config={recipe}"]) == 0
    whole = read_training(tmp_path / "run" / "last.ckpt")
    cut, last = tmp_path / "cut", tmp_path / "cut" / "last.ckpt"
    run = ["fit", f"--config={recipe}", f"--trainer.default_root_dir={cut}"]
    whole_recipe = recipe.read_text()
    content["trainer"]["callbacks"] = [
        {"class_path": "tests.tasks.training.SendSignal", "init_args": {"number": 15, "at": 5}}
    ]
    recipe.write_text(yaml.safe_dump(content))
    with pytest.raises(SystemExit):
        main(run)
    recipe.write_text(whole_recipe)
    pl.seed_everything(0, verbose=False)
    as_before(last, made(ClassificationTask, preset="quadtree_b0", num_classes=2, options=small).model)
    assert main([*run, "--resume=auto", "--model.optimization.level_rate=5"]) == 2
    assert "optimization.level_rate is 3.0 in " in capsys.readouterr().err
    assert main([*run, "--resume=auto"]) == 0
    resumed = read_training(last)
    assert resumed["global_step"] == whole["global_step"] == 12
    for name, value in whole["state_dict"].items():
        torch.testing.assert_close(resumed["state_dict"][name], value, rtol=0, atol=0, msg=name)
    assert resumed["hyper_parameters"]["optimization"]["level_rate"] == 3.0


def test_a_recipe_with_a_former_key_is_told_the_new_one(tmp_path, capsys):
    recipe = write_recipe(tmp_path / "recipe.yaml", tmp_path)
    content = yaml.safe_load(recipe.read_text())
    content["model"]["init_args"]["warmup_epochs"] = 1
    recipe.write_text(yaml.safe_dump(content))
    assert main(["fit", f"--config={recipe}"]) == 2
    assert "warmup_epochs is unknown; it is --model.optimization.warmup_epochs now" in capsys.readouterr().err


def test_options_of_former_checkpoints():
    saved = {
        "preset": "tiny",
        "learning_rate": 0.1,
        "decay_vectors": True,
        "fine_loss": "both",
        "depth_tolerance": None,
    }
    assert options_today("MatchingTask", saved) == {
        "preset": "tiny",
        "optimization": {"learning_rate": 0.1, "decayed": "all"},
        "loss": {"fine": "both"},
        "depth_tolerance": None,
    }
    now = options_today("DetectionTask", {"schedule": "step", "milestones": [3], "decay_norms": False})
    assert now == {
        "optimization": {
            "schedule": "multistep",
            "milestones": [3],
            "decayed": "matrices",
            "warmup_start": 0.001,
            "end": 0.01,
            "decay": 0.1,
        }
    }
    now = options_today("SegmentationTask", {"backbone": "b", "options": None, "dropout": 0.2, "power": 0.9})
    assert now["preset"] == "b"
    assert now["options"] == {"options": {}, "dropout": 0.2}
    assert now["optimization"] == {"schedule": "polynomial", "decayed": "all_but_norms", "power": 0.9}
    assert options_today("MatchingTask", {"optimization": {"learning_rate": 1.0}}) == {
        "optimization": {"learning_rate": 1.0}
    }
    assert name_today("SomeTask", "learning_rate") is None
    assert all(name_today(task, "learning_rate") == "optimization.learning_rate" for task in NAMES)
