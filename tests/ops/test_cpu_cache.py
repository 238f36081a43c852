"""Where compiled kernels go, in processes of their own. A tiny kernel stands in for the package's, which take a minute to compile."""

import ast
import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from quadtree_attention import compat
from quadtree_attention.models.sttr import exact_kernels
from quadtree_attention.ops import cpu_cache, cpu_kernels
from quadtree_attention.predict import refinement_kernels

NOTICE = "compiling the CPU kernels"
KERNELS = """
from .cpu_blocks import combined
from .cpu_cache import compiled

@compiled
def run(a, b):
    return combined(a, b)
"""
BLOCKS = """
from numba.extending import register_jitable

@register_jitable
def combined(a, b):
    return a * b
"""


def made(folder: Path) -> Path:
    """A package of one kernel, compiled and kept as the real ones are."""
    ops = folder / "tiny" / "ops"
    ops.mkdir(parents=True)
    shutil.copy(compat.__file__, ops.parent)
    (ops / "__init__.py").write_text("")
    (ops / "cpu_kernels.py").write_text(KERNELS)
    (ops / "cpu_blocks.py").write_text(BLOCKS)
    shutil.copy(cpu_cache.__file__, ops)
    return folder


# Imports Numba and compiles once, which is most of the work, and forks for each run. What a run says goes to files.
SERVER = """
import json, os, sys
import numba

numba.njit(lambda a, b: a * b)(1, 2)
for line in sys.stdin:
    folder, package, environment = json.loads(line)
    child = os.fork()
    if not child:
        for number, name in enumerate(("out", "err"), 1):
            os.dup2(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_CREAT), number)
        os.environ.update(environment)
        numba.config.reload_config()
        sys.path.insert(0, package)
        from tiny.ops.cpu_kernels import run
        print(run(3, 5), flush=True)
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@dataclass
class Done:
    status: int
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A function that prints in a process of its own what the kernel makes of 3 and 5."""
    command = [sys.executable, "-c", SERVER]
    environment = {**os.environ, "NUMBA_OPT": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as server:

        def ask(package, **environment):
            folder = tmp_path_factory.mktemp("said")
            server.stdin.write(json.dumps([str(folder), str(package), environment]) + "\n")
            status = int(server.stdout.readline())
            return Done(status, (folder / "out").read_text(), (folder / "err").read_text())

        yield ask


@pytest.fixture(scope="module")
def compiled(run, tmp_path_factory):
    """A package, its folder of compiled kernels, and what was said when it was compiled."""
    folder = tmp_path_factory.mktemp("compiled")
    package, cache = made(folder / "package"), folder / "cache"
    first = run(package, NUMBA_CACHE_DIR=str(cache))
    assert first.stdout == "15\n", first.stderr
    assert {file.suffix for file in cache.rglob("*.*")} == {".nbi", ".nbc"}
    return package, cache, first.stderr


@pytest.fixture
def cache(compiled, tmp_path):
    """A copy of the compiled kernels, to damage."""
    return shutil.copytree(compiled[1], tmp_path / "cache")


def test_compiled_once_and_said_once(run, compiled):
    package, cache, said = compiled
    assert said.count(NOTICE) == 1
    again = run(package, NUMBA_CACHE_DIR=str(cache))
    assert (again.stdout, again.stderr) == ("15\n", "")


def test_no_folder_to_write_to(run, tmp_path):
    package = made(tmp_path / "package")
    file = tmp_path / "file"  # no folder can be made below a file, whoever asks
    file.write_text("")
    (package / "tiny" / "ops" / "__pycache__").write_text("")
    done = run(package, HOME=str(file), XDG_CACHE_HOME=str(file))
    assert done.stdout == "15\n", done.stderr
    assert done.stderr.count(NOTICE) == 1


def test_a_change_of_any_file_of_kernels_is_seen(run, compiled, tmp_path):
    package = shutil.copytree(compiled[0], tmp_path / "package")
    cache = str(tmp_path / "cache")
    assert run(package, NUMBA_CACHE_DIR=cache).stdout == "15\n"
    blocks = package / "tiny" / "ops" / "cpu_blocks.py"
    blocks.write_text(BLOCKS.replace("a * b", "a + b"))
    changed = run(package, NUMBA_CACHE_DIR=cache)
    assert changed.stdout == "8\n", changed.stderr  # what the changed file says, not what was compiled before


def imported(name: str) -> set[str]:
    """Files of the package's operator that one of them imports, by itself or through another."""
    folder = Path(cpu_kernels.__file__).parent
    found: set[str] = set()
    for node in ast.walk(ast.parse((folder / name).read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            if node.module == "compat":  # names of Numba's own
                continue
            assert node.level == 1, "kernels are made of files of this folder alone"
            modules = [node.module] if node.module else [alias.name for alias in node.names]
            for file in {f"{module}.py" for module in modules} - found:
                found |= {file} | imported(file)
    return found


def test_all_files_of_kernels_are_looked_at():
    assert {"cpu_kernels.py", *imported("cpu_kernels.py")} == set(cpu_cache.SOURCES)


@pytest.mark.parametrize("module", [cpu_kernels, refinement_kernels, exact_kernels], ids=lambda module: module.__name__)
def test_all_kernels_are_kept_so(module):
    kernels = [x for x in vars(module).values() if hasattr(x, "py_func")]
    assert len(kernels) > 2
    assert {type(kernel._cache) for kernel in kernels} == {cpu_cache.KernelCache}


def damage(number: int, file: Path) -> None:
    content = bytearray(file.read_bytes())
    if number == 0:
        content = content[: len(content) // 2]
    elif number == 1:
        content = random.Random(number).randbytes(len(content))
    else:  # a few wrong bits of machine code, which would otherwise run
        for place in range(len(content) // 4, len(content) // 2):
            content[place] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(("suffix", "number"), [("nbi", 0), ("nbi", 1), ("nbc", 0), ("nbc", 1), ("nbc", 2)])
def test_a_damaged_cache_is_made_anew(run, compiled, cache, suffix, number):
    package, _, _ = compiled
    (file,) = cache.rglob(f"*.{suffix}")
    damage(number, file)
    first, second = (run(package, NUMBA_CACHE_DIR=str(cache)) for _ in range(2))
    assert first.stdout == "15\n", first.stderr
    assert "Traceback" not in first.stderr
    assert "cannot be read and are made anew" in first.stderr
    assert number < 2 or "the digest is another" in first.stderr
    assert (second.stdout, second.stderr) == ("15\n", "")


def test_a_cache_that_cannot_be_written(run, compiled, cache):
    package, _, _ = compiled
    for file in cache.rglob("*.nbi"):  # a folder in its place can be neither read nor replaced, whoever asks
        file.unlink()
        file.mkdir()
    done = run(package, NUMBA_CACHE_DIR=str(cache))
    assert done.stdout == "15\n", done.stderr
    assert "Traceback" not in done.stderr
    assert "cannot be kept for the next time" in done.stderr
