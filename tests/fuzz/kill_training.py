"""`python -m tests.fuzz.kill_training [--kills N] [--seed S]`: kill a training at random moments, and see that nothing is lost.

Each try begins a training with ``--resume auto`` in a process of its own, and kills it (SIGKILL) after a random time; every second one when a
random checkpoint of it is being written, after a random number of bytes. After each kill the checkpoint must be whole and no older than the one
before, and at most one unfinished file may lie beside it. In the end the training is let go on, and must end with the very weights that it has
when nobody kills it.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

EPOCHS = 60  # of 4 steps, a checkpoint after each


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz.kill_training", description="Kill a training at random moments."
    )
    parser.add_argument("--kills", type=int, default=20, help="how many (20)")
    parser.add_argument("--seed", type=int, default=0, help="of all chance (0)")
    parser.add_argument(
        "--epochs", type=int, default=EPOCHS, help=f"of 4 steps, with a checkpoint after each ({EPOCHS})"
    )
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        return _try(Path(folder), options.kills, options.epochs, chance)


def _try(folder: Path, kills: int, epochs: int, chance: random.Random) -> int:
    from quadtree_attention.tasks.checkpoints import read_training
    from tests.tasks.training import write_recipe, write_squares

    root = write_squares(folder / "squares")
    writer = {
        "filename": "last",
        "enable_version_counter": False,
        "every_n_train_steps": 1,
        "save_on_train_epoch_end": False,
    }
    callbacks = [
        {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.8}},
        {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": writer},
    ]
    recipes = {}
    for name in ("whole", "killed"):
        (folder / name).mkdir()
        recipes[name] = write_recipe(
            folder / name / "recipe.yaml", root, callbacks=callbacks, max_epochs=epochs, check_val_every_n_epoch=5
        )
    begin = time.monotonic()
    if _run(recipes["whole"]) != 0:
        print("the training fails even where nobody kills it")
        return 1
    length = time.monotonic() - begin
    run, steps, amid, none = folder / "killed" / "run", 0, 0, 0
    for n in range(kills):
        began = time.time_ns()
        if n % 2:
            status = _run(recipes["killed"], writes=(chance.randrange(max(1, 2 * epochs // kills)), chance.random()))
        else:
            status = _run(recipes["killed"], seconds=chance.uniform(0, length / kills * 3))
        if status == 0:
            break
        if status != -signal.SIGKILL:
            print(f"try {n} ended with {status} instead of being killed")
            return 1
        strays = [path.name for path in run.glob(".*")] if run.is_dir() else []
        if strays not in ([], [".last.ckpt.part"]):
            print(f"after kill {n} there are {strays}")
            return 1
        amid += bool(strays) and (run / strays[0]).stat().st_mtime_ns > began  # not one of an earlier kill
        if not (run / "last.ckpt").exists():
            none += 1
            if steps:
                print(f"after kill {n} the checkpoint of step {steps} is gone")
                return 1
            continue
        step = read_training(run / "last.ckpt")["global_step"]  # raises if it is not whole
        if step < steps:
            print(f"after kill {n} the checkpoint is of step {step}, before it was of {steps}")
            return 1
        steps = step
    killed = n + (status != 0)
    if _run(recipes["killed"]) != 0:
        print("the training does not go on")
        return 1
    one, two = (read_training(folder / name / "run" / "last.ckpt") for name in ("whole", "killed"))
    same = one["global_step"] == two["global_step"] and all(
        (value == two["state_dict"][name]).all() for name, value in one["state_dict"].items()
    )
    print(
        f"{killed} kills, {amid} of them amid a checkpoint, {none} before the first one; {one['global_step']} steps, a checkpoint after each: "
        f"the weights at the end are {'the same' if same else 'OTHERS'}"
    )
    return not same


def _run(recipe: Path, seconds: float | None = None, writes: tuple[int, float] | None = None) -> int:
    """The status of a training in a process of its own, which is killed after ``seconds`` of it, or amid a checkpoint: its number, and the share."""
    child = os.fork()  # most of what a process of this kind costs is to import the packages
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        from quadtree_attention.__main__ import main

        if seconds is not None:
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
        if writes is not None:
            _die_amid(*writes)
        status = main(["fit", f"--config={recipe}", "--resume=auto"])
    except BaseException:
        traceback.print_exc()
    os._exit(status)


def _die_amid(number: int, share: float) -> None:
    """Kill this process when it has written a share of its checkpoint of that number."""
    opened, count = Path.open, 0

    class Dying:
        def __init__(self, file):
            self.file = file

        def write(self, content):
            self.file.write(bytes(content)[: int(len(content) * share)])
            self.file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

    def open_(path, *arguments, **options):
        nonlocal count
        file = opened(path, *arguments, **options)
        if not path.name.endswith(".part"):
            return file
        count += 1
        return Dying(file) if count > number else file

    Path.open = open_


if __name__ == "__main__":
    # What the children need anyway.
    import torch

    import quadtree_attention.cli
    import quadtree_attention.data.recognition.classification
    import quadtree_attention.tasks.classification  # noqa: F401

    torch.set_num_threads(1)
    sys.exit(main())
