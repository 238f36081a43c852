"""Where compiled kernels go, in processes of their own."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import quadtree_attention

CODE = """
import torch
from quadtree_attention import quadtree_attention
torch.manual_seed(0)
x = torch.randn(1, 8, 8, 2, 16)
out = quadtree_attention(x, x, x, topk=4, levels=2, backend="cpu")
torch.testing.assert_close(out, quadtree_attention(x, x, x, topk=4, levels=2, backend="reference"))
print("done", flush=True)
"""
NOTICE = "compiling the CPU kernels"


def run(package: Path, **environment: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(package), **environment}
    return subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, timeout=300)


def copied(folder: Path) -> Path:
    source = Path(quadtree_attention.__file__).parent
    shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__", "embedded"))
    return folder


def test_compiled_once_and_said_once(tmp_path):
    cache = str(tmp_path / "cache")
    first, second = (
        run(copied(tmp_path / "package") if n == 0 else tmp_path / "package", NUMBA_CACHE_DIR=cache) for n in range(2)
    )
    assert first.stdout == second.stdout == "done\n", first.stderr + second.stderr
    assert first.stderr.count(NOTICE) == 1
    assert NOTICE not in second.stderr


def test_no_folder_to_write_to(tmp_path):
    package = copied(tmp_path / "package")
    file = tmp_path / "file"  # no folder can be made below a file, whoever asks
    file.write_text("")
    (package / "quadtree_attention" / "ops" / "__pycache__").write_text("")
    done = run(package, HOME=str(file), XDG_CACHE_HOME=str(file), PYTHONDONTWRITEBYTECODE="1")
    assert done.stdout == "done\n", done.stderr
    assert done.stderr.count(NOTICE) == 1


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A copy of the package, and a folder of its compiled kernels."""
    folder = tmp_path_factory.mktemp("compiled")
    package, cache = copied(folder / "package"), folder / "cache"
    assert run(package, NUMBA_CACHE_DIR=str(cache)).stdout == "done\n"
    assert {file.suffix for file in cache.rglob("*.*")} == {".nbi", ".nbc"}
    return package, cache


def test_a_change_of_any_file_of_kernels_is_seen(compiled, tmp_path):
    package, whole = compiled
    cache = shutil.copytree(whole, tmp_path / "cache")
    blocks = package / "quadtree_attention" / "ops" / "cpu_blocks.py"
    source = blocks.read_text()
    product = "self.builder.fmul(a, b, flags=FAST)"
    assert product in source
    try:
        blocks.write_text(source.replace(product, "self.builder.fadd(a, b, flags=FAST)"))
        wrong = run(package, NUMBA_CACHE_DIR=str(cache))
        assert "Tensor-likes are not close" in wrong.stderr  # what the changed file says, not what was compiled before
    finally:
        blocks.write_text(source)
    again = run(package, NUMBA_CACHE_DIR=str(cache))
    assert (again.stdout, again.stderr) == ("done\n", "")


def damage(number: int, file: Path) -> None:
    content = bytearray(file.read_bytes())
    if number % 3 == 0:
        content = content[: len(content) // 2]
    elif number % 3 == 1 or file.suffix == ".nbi":
        content = random.Random(number).randbytes(len(content))
    else:  # a few wrong bits of machine code, which would otherwise run
        for place in range(len(content) // 4, len(content) // 2):
            content[place] ^= 1
    file.write_bytes(content)


def test_a_damaged_cache_is_made_anew(compiled, tmp_path):
    package, whole = compiled
    cache = shutil.copytree(whole, tmp_path / "cache")
    for number, file in enumerate(sorted(cache.rglob("*.nb?"))):
        damage(number, file)
    first, second = (run(package, NUMBA_CACHE_DIR=str(cache)) for _ in range(2))
    assert first.stdout == "done\n", first.stderr
    assert "Traceback" not in first.stderr
    assert "cannot be read and are made anew" in first.stderr
    assert (second.stdout, second.stderr) == ("done\n", "")


def test_wrong_bits_of_machine_code_never_run(compiled, tmp_path):
    package, whole = compiled
    cache = shutil.copytree(whole, tmp_path / "cache")
    for file in cache.rglob("*.nbc"):
        damage(2, file)
    done = run(package, NUMBA_CACHE_DIR=str(cache))
    assert done.stdout == "done\n", done.stderr
    assert "the digest is another" in done.stderr


def test_a_cache_that_cannot_be_written(compiled, tmp_path):
    package, whole = compiled
    cache = shutil.copytree(whole, tmp_path / "cache")
    for file in cache.rglob("*.nbi"):  # a folder in its place can be neither read nor replaced, whoever asks
        file.unlink()
        file.mkdir()
    done = run(package, NUMBA_CACHE_DIR=str(cache))
    assert done.stdout == "done\n", done.stderr
    assert "Traceback" not in done.stderr
    assert "cannot be kept for the next time" in done.stderr
