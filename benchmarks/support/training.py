"""What the benchmarks that compare trainings share: a recipe, changed, is trained in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

# One thread a run; and buffers are kept from step to step, see docs/training.md.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}


def fit(config: dict[str, Any], folder: Path, overlays: Sequence[Path] = ()) -> Path:
    """Train by a configuration of `quadtree fit`, and return the last checkpoint.

    All it writes goes to ``folder``: recipe.yaml, fit.log, log/ and the checkpoints. A run that was cut off goes on from its last one. Of ``config``
    the entries of the trainer that say where things go are changed. overlays: recipes laid over it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config["trainer"] |= {"enable_progress_bar": False, "default_root_dir": str(folder)}
    config["trainer"]["logger"] = {
        "class_path": "lightning.pytorch.loggers.CSVLogger",
        "init_args": {"save_dir": str(folder), "name": "log"},
    }
    for callback in config["trainer"]["callbacks"]:
        if callback["class_path"].endswith("ModelCheckpoint"):
            callback["init_args"]["dirpath"] = str(folder)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    last = folder / "last.ckpt"
    command = [sys.executable, "-m", "quadtree_attention", "fit"]
    for path in (folder / "recipe.yaml", *overlays):
        command += ["--config", str(path)]
    if last.exists():
        command += ["--ckpt_path", str(last)]
    with (folder / "fit.log").open("a") as log:
        subprocess.run(command, env=os.environ | ENVIRONMENT, stdout=log, stderr=log, check=True)
    return last
