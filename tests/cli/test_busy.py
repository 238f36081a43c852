"""What the command does for other programs on the machine."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "None passive"), ({"OMP_WAIT_POLICY": "active"}, "None active"), ({"GOMP_SPINCOUNT": "7"}, "7 None")],
)
def test_threads_are_told_to_sleep_unless_somebody_said_otherwise(given, expected):
    """Before torch is loaded: OpenMP reads it then."""
    code = (
        "import os, sys\nfrom quadtree_attention.__main__ import command\nsys.argv = ['quadtree', '--version']\n"
        "try:\n    command()\nexcept SystemExit:\n    assert 'torch' not in sys.modules\n"
        "print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_WAIT_POLICY'))"
    )
    ours = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ours | given)
    assert done.stdout.splitlines()[-1] == expected
