"""match-folder, killed at random moments: nothing that was matched is lost, nothing is matched twice, and the result is that of a run left alone.

    python -m tests.fuzz.kills --kills 200 --seed 0

Each run is a fork of this process, which has loaded all that is needed, with a matcher that notes its calls and takes no time.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

IMAGES = 5
PAIRS = IMAGES * (IMAGES - 1) // 2


def try_kills(out: str, kills: int, seed: int) -> list[str]:
    """What went wrong in ``kills`` kills of runs that write ``out``, "m.h5" or "d.db"; nothing if the list is empty."""
    from PIL import Image

    rng = random.Random(f"{out} {seed}")
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        top = Path(name)
        (top / "images").mkdir()
        pixels = np.random.default_rng(0).integers(0, 255, (48, 64 + IMAGES, 3), np.uint8)
        for k in range(IMAGES):
            Image.fromarray(pixels[:, k : k + 64]).save(top / "images" / f"{k}.png")
        alone = _folder(top, "alone")
        begin = time.monotonic()
        if status := _end(_start(top, alone / out)):
            return [f"a run left alone ends with status {status}"]
        lasts = time.monotonic() - begin
        expected, done, number = _content(alone / out), 0, 0
        while done < kills and len(wrong) < 20:
            place = _folder(top, f"run{number}")
            number += 1
            for _ in range(50):  # runs, each of which goes on where the last one was killed
                kept = _kept(place / f"{out}.partial")
                child = _start(top, place / out)
                time.sleep(rng.uniform(0, lasts))
                os.kill(child, signal.SIGKILL)
                status = _end(child)
                if status != -signal.SIGKILL:
                    break
                done += 1
                if not (place / out).exists() and _kept(place / f"{out}.partial") < kept:
                    wrong.append(f"run {number} lost matches: {kept}, then {_kept(place / f'{out}.partial')}")
            else:
                status = _end(_start(top, place / out))
            if status:
                wrong.append(f"run {number} ends with status {status}: {(place / 'stderr').read_text()[-300:]}")
                continue
            if _content(place / out) != expected:
                wrong.append(f"run {number} has another result")
            wrong += [f"run {number}: {what}" for what in _twice(place)]
            left = {path.name for path in place.iterdir()} - {out, "features.h5", "calls", "stderr", "cache"}
            # A file that was being written has a name by chance, so that none is taken for another's.
            if left := {name for name in left if not (name.startswith(".") and name.endswith(".h5"))}:
                wrong.append(f"run {number} leaves {', '.join(sorted(left))}")
    return wrong


def _folder(top: Path, name: str) -> Path:
    (top / name).mkdir()
    return top / name


def _start(top: Path, out: Path) -> int:
    """A process that matches -> its number."""
    import h5py  # noqa: F401  (what a run needs is loaded once)
    import pycolmap  # noqa: F401
    import scipy.spatial  # noqa: F401

    import quadtree_attention.cli.match_folder
    import quadtree_attention.data.lists
    import quadtree_attention.predict.colmap  # noqa: F401
    from quadtree_attention import Matcher, Matches
    from quadtree_attention.__main__ import main

    child = os.fork()
    if child:
        return child
    status = 70
    try:
        stream = os.open(out.parent / "stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number in (1, 2):
            os.dup2(stream, number)
        os.environ["XDG_CACHE_HOME"] = str(out.parent / "cache")

        def match(self, image0, image1, **options):
            with (out.parent / "calls").open("a") as file:
                file.write(f"{os.getpid()} {image0[0, 0].tolist()} {image1[0, 0].tolist()}\n")
            points = np.float32([[x, y] for x in range(5, 60, 7) for y in range(5, 40, 7)])
            return Matches(points, points + 0.5, np.full(len(points), 0.9, np.float32))

        Matcher.match, Matcher.from_pretrained = match, classmethod(lambda cls, *a, **k: object.__new__(cls))
        status = main(["match-folder", str(top / "images"), "--out", str(out), "--quiet"])
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _end(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _kept(path: Path) -> int:
    """How many pairs a file of matches holds; SQLite first undoes what a killed process had begun."""
    if not path.exists():
        return 0
    base = sqlite3.connect(path)
    try:
        return base.execute("SELECT COUNT(*) FROM matches").fetchone()[0]
    except sqlite3.OperationalError:  # it was killed before there were any tables
        return 0
    finally:
        base.close()


def _content(path: Path) -> object:
    if path.suffix == ".db":
        base = sqlite3.connect(path)
        try:
            tables = ("cameras", "images", "keypoints", "matches", "two_view_geometries")
            return [base.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall() for table in tables]
        finally:
            base.close()
    import h5py

    found: dict[str, bytes] = {}
    for one in (path, path.with_name("features.h5")):
        with h5py.File(one) as file:
            file.visititems(
                lambda key, item: found.update({key: item[:].tobytes()}) if isinstance(item, h5py.Dataset) else None
            )
    return found


def _twice(place: Path) -> list[str]:
    """Pairs that were matched again after a run had gone on to the next: only the one at work may be lost with a process."""
    calls = [line.split(" ", 1) for line in (place / "calls").read_text().splitlines()]
    found = []
    last = dict(calls)
    kept: set[str] = set()
    for process, pair in calls:
        if pair in kept:
            found.append(f"{pair} is matched again")
        if pair != last[process]:
            kept.add(pair)
    if len({pair for _, pair in calls}) != PAIRS:
        found.append(f"{len({pair for _, pair in calls})} pairs are matched, expected {PAIRS}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.kills", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="of each kind of output (100)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    broken = 0
    for out in ("m.h5", "d.db"):
        wrong = try_kills(out, options.kills, options.seed)
        print(
            f"{out}: killed {options.kills} times or more, {len(wrong)} broke the rule",
            *wrong[:5],
            sep="\n    ",
            flush=True,
        )
        broken += len(wrong)
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
