"""Runs cases in a child process and says which break the rule."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import random
import select
import shutil
import subprocess
import sys
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from .damage import damaged
from .kinds import Kind

LONGEST = 400  # characters of a message
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Case:
    """One damaged file: ``number`` counts from 0 among those of chance; those made by hand have a name."""

    kind: str
    seed: int
    number: int | None
    name: str
    file: str
    verdict: str  # "" if it keeps the rule
    status: int

    def __str__(self) -> str:
        how = f"--seed {self.seed} --case {self.number}" if self.number is not None else f"--case {self.name}"
        return f"{self.kind} {how} ({self.file}): {self.verdict}"


class Judge:
    """Tries cases of kinds; a context manager, which owns the child process and a temporary folder."""

    def __init__(self) -> None:
        self.top = Path(tempfile.mkdtemp(prefix="fuzz-"))
        self.child: subprocess.Popen | None = None
        self.sound: dict[str, list[tuple[Path, str]]] = {}

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        shutil.rmtree(self.top, ignore_errors=True)

    def check_sound(self, kind: Kind) -> str:
        """What is wrong with reading the sound files, which tells of a mistake in the kind; "" if nothing is."""
        self._files(kind)
        return self._run(kind, None, None, warm=True)[0]

    def by_hand(self, kind: Kind, name: str, keep: Path | None = None) -> Case:
        """Try the contents ``name`` of ``kind.hostile``."""
        path, _ = self._files(kind)[0]
        verdict, status = self._run(kind, path, kind.hostile[name], keep=keep)
        return Case(kind.name, 0, None, name, path.name, verdict, status)

    def by_chance(self, kind: Kind, seed: int, number: int, keep: Path | None = None) -> Case:
        """Try case ``number`` of ``seed``."""
        rng = random.Random(f"{kind.name} {seed} {number}")
        path, form = rng.choice(self._files(kind))
        content = damaged(rng, (self.top / kind.name / path).read_bytes(), form)
        verdict, status = self._run(kind, path, content, keep=keep)
        return Case(kind.name, seed, number, "", str(path), verdict, status)

    def _files(self, kind: Kind) -> list[tuple[Path, str]]:
        """The sound files of a kind that are to be damaged, relative to their folder; written once."""
        if kind.name not in self.sound:
            folder = self.top / kind.name
            folder.mkdir()
            self.sound[kind.name] = [(path.relative_to(folder), form) for path, form in kind.make(folder)]
        return self.sound[kind.name]

    def _run(
        self, kind: Kind, path: Path | None, content: bytes | None, warm: bool = False, keep: Path | None = None
    ) -> tuple[str, int]:
        folder = self.top / "case"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.top / kind.name, folder)
        target = folder / (path or self.sound[kind.name][0][0])
        if content is not None:
            target.write_bytes(content)
        if keep is not None:
            shutil.copytree(folder, keep, dirs_exist_ok=True)
        before = _listing(folder)
        outcome = self._ask(kind, folder, target, warm)
        verdict = (
            outcome if isinstance(outcome, str) else _verdict(kind, target, outcome, self._noise(1), self._noise(2))
        )
        status = -1 if isinstance(outcome, str) else outcome["status"]
        if not verdict:
            verdict = _changed(kind, before, _listing(folder), status)
        if not verdict and not warm and (left := sorted(one.name for one in (self.top / "tmp").iterdir())):
            verdict = f"temporary files left: {', '.join(left)}"
        if warm and not verdict and status != 0:
            verdict = f"sound files are refused: {outcome['message'] or self._noise(2)}"  # type: ignore[index]
        return verdict, status

    def _ask(self, kind: Kind, folder: Path, target: Path, warm: bool) -> dict | str:
        """What the child reports, or how it ended."""
        if self.child is None or self.child.poll() is not None:
            self._start()
            if not warm:  # what a first use loads and compiles is not the case's
                fresh = self.top / "fresh"
                shutil.rmtree(fresh, ignore_errors=True)
                shutil.copytree(self.top / kind.name, fresh)
                self._ask(kind, fresh, fresh / self.sound[kind.name][0][0], True)
                shutil.rmtree(fresh, ignore_errors=True)
        assert self.child is not None
        for number in (1, 2):
            (self.top / f"stream{number}").write_bytes(b"")
        for one in (self.top / "tmp").iterdir():
            shutil.rmtree(one) if one.is_dir() else one.unlink()
        assert self.child.stdin is not None
        message = {"kind": kind.name, "folder": str(folder), "path": str(target), "warm": warm}
        self.child.stdin.write(json.dumps(message).encode() + b"\n")
        self.child.stdin.flush()
        ready, _, _ = select.select([self.report], [], [], 300 if warm else kind.seconds)
        if not ready:
            self._stop()
            return f"hangs: no answer in {kind.seconds:g} s"
        line = self.report.readline()
        if not line:
            status = self.child.wait()
            self._stop()
            return f"the process died with status {status}: {self._noise(2)[-200:]}"
        return json.loads(line)

    def _start(self) -> None:
        self._stop()
        (self.top / "tmp").mkdir(exist_ok=True)
        read, write = os.pipe()
        environment = {
            **os.environ,
            "TMPDIR": str(self.top / "tmp"),
            "OMP_NUM_THREADS": "1",
            "PYTHONFAULTHANDLER": "",
            "COLUMNS": "200",
        }
        with contextlib.ExitStack() as stack:
            streams = [stack.enter_context((self.top / f"stream{number}").open("ab")) for number in (1, 2)]
            self.child = subprocess.Popen(
                [sys.executable, "-m", "tests.fuzz.worker", str(write)],
                stdin=subprocess.PIPE, stdout=streams[0], stderr=streams[1], pass_fds=[write], env=environment, cwd=ROOT,
            )  # fmt: skip
        os.close(write)
        self.report = os.fdopen(read)

    def _stop(self) -> None:
        if self.child is not None:
            self.child.kill()
            self.child.wait()
            assert self.child.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self.child.stdin.close()
            self.report.close()
        self.child = None

    def _noise(self, number: int) -> str:
        return (self.top / f"stream{number}").read_bytes().decode("utf-8", "replace")


def _verdict(kind: Kind, target: Path, outcome: dict, stdout: str, stderr: str) -> str:
    if outcome["status"] == -1:
        return f"traceback: {outcome['trace'].strip().splitlines()[-1][:300]}\n{outcome['trace']}"
    if outcome["warnings"]:
        return f"warning of another library: {outcome['warnings'][0]}"
    lines = stderr.splitlines()
    if outcome["command"]:
        if "Traceback (most recent call last)" in stderr:
            return f"traceback: {stderr[-2000:]}"
        strange = [line for line in lines if not line.startswith("quadtree: ")]
        if strange:
            return f"noise on stderr: {strange[0][:200]}"
        if outcome["status"] not in (0, 1, 2):
            return f"exit status {outcome['status']}"
        if outcome["status"] == 2 and len(lines) != 1:
            return f"{len(lines)} lines on stderr, expected one: {stderr[:200]!r}"
        if outcome["status"] == 1 and not lines:
            return "exit status 1 without a line that says why"
        if lines and outcome["status"] == 0 and not kind.warns:
            return f"a line though it succeeds: {lines[0]}"
        message = lines[-1] if lines and outcome["status"] else ""
    else:
        if lines or stdout:
            return f"noise: {(stderr or stdout)[:200]!r}"
        message = outcome["message"]
    if outcome["status"] == 0:
        return ""
    if not message.strip() or "\n" in message.strip() or len(message) > LONGEST:
        return f"a message of {len(message)} characters and {message.count(chr(10)) + 1} lines, expected one of at most {LONGEST}: {message[:300]!r}"
    if "out of memory" in message or "emoryError" in message:
        return f"memory without bound: {message}"
    if kind.names and target.name not in message:
        return f"a message without the name of the file: {message}"
    return ""


def _listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and checksum of each file; of folders, nothing."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, zlib.crc32(path.read_bytes()))
        if path.is_file()
        else (0, 0)
        for path in folder.rglob("*")
    }


def _changed(kind: Kind, before: dict, after: dict, status: int) -> str:
    allowed = kind.results if status in (0, 1) else kind.leaves
    left = [
        name for name in sorted(after.keys() - before.keys()) if not any(fnmatch.fnmatch(name, one) for one in allowed)
    ]
    if left:
        return f"files left: {', '.join(left)}"
    if broken := [
        name
        for name in before
        if after.get(name) != before[name] and not any(fnmatch.fnmatch(name, one) for one in allowed)
    ]:
        return f"inputs changed: {', '.join(broken)}"
    return ""
