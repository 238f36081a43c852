"""Where compiled kernels go, in processes of their own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import quadtree_attention

CODE = """
import torch
from quadtree_attention import quadtree_attention
torch.manual_seed(0)
x = torch.randn(1, 8, 8, 2, 8)
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
