"""Checkpoints that a training goes on from, and recipes."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from . import Kind

CONTENT = {
    "pytorch-lightning_version": "2.6.0",
    "epoch": 1,
    "global_step": 7,
    "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
    "callbacks": {"Report": {"best": {"val/loss": [0.5, 7]}}},
    "optimizer_states": [{"state": {}, "param_groups": [{"lr": 0.1, "params": [0]}]}],
    "lr_schedulers": [{"last_epoch": 7}],
    "hyper_parameters": {"learning_rate": 0.1, "options": {"depths": [1, 1]}, "_class_path": "a.B"},
}
RECIPE = """seed_everything: 0
model:
  class_path: quadtree_attention.tasks.classification.ClassificationTask
  init_args: &shared
    preset: quadtree_b0
    num_classes: 10
    options: {depths: [1, 1, 2, 1], topk: 8}
    optimization: {learning_rate: 1.0e-3}
data:
  class_path: quadtree_attention.data.recognition.classification.ClassificationData
  init_args: {root: photos, input_size: [3, 64, 64], auto_augment: null, scale: [0.4, 1.0]}
trainer:
  max_epochs: 20
  precision: 32-true
  default_root_dir: run
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelCheckpoint
      init_args: {filename: last, train_time_interval: "0:02:00"}
    - class_path: lightning.pytorch.callbacks.EMAWeightAveraging
      init_args: {decay: 0.995}
"""
LEVELS = "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(20))
HOSTILE = {
    "bomb": b"a: &a [x, x, x, x, x, x, x, x, x]\n" + LEVELS.encode(),
    "merge bomb": b"a: &a {x: 1}\n"
    + "".join(f"b{n}: &b{n} {{<<: [{', '.join(['*a'] * 99)}]}}\n" for n in range(999)).encode(),
    "holds itself": b"model: &a\n  init_args: *a\n",
    "merges itself": b"model: &a\n  <<: *a\n",
    "deep": b"model: " + b"{a: " * 100_000,
    "deep list": b"model: " + b"[" * 900 + b"]" * 900,
    "python": b"model: !!python/object/apply:os.system ['touch pwned']\n",
    "many": b"model: {" + b", ".join(b"a%d: 1" % n for n in range(200_000)) + b"}\n",
    "zero bytes": b"model: \0\n",
    "utf-16": RECIPE.encode("utf-16"),
}


def _checkpoint(folder: Path) -> list[tuple[Path, str]]:
    import torch

    from quadtree_attention.tasks.checkpoints import WholeFiles

    path = folder / "last.ckpt"
    WholeFiles().save_checkpoint({**CONTENT, "state_dict": {"a": torch.arange(300.0), "b": torch.ones(3, 4)}}, path)
    return [(path, "zip"), (path, "bytes")]


def _go_on(folder: Path, path: Path) -> None:
    from quadtree_attention.tasks.checkpoints import check_resumable, read_training

    check_resumable(read_training(path), path)


def _recipe(folder: Path) -> list[tuple[Path, str]]:
    path = folder / "recipe.yaml"
    path.write_text(RECIPE)
    return [(path, "yaml"), (path, "text")]


def _parse(folder: Path, path: Path) -> int:
    from quadtree_attention.__main__ import main

    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return main(["fit", "--config", str(path), "--print_config"])
    except SystemExit as end:  # after the configuration is printed
        return int(end.code or 0)


KINDS = [
    Kind(
        "training-ckpt",
        _checkpoint,
        _go_on,
        hostile={"empty": b"", "zip": b"PK\5\6" + bytes(18)},
        cases=60,
        needs="lightning",
    ),
    Kind("recipe", _recipe, _parse, hostile=HOSTILE, names=False, cases=30, needs="lightning"),
]
