"""A part of `python -m tests.fuzz.kill_training`: a training that is killed loses nothing."""

import os
import subprocess
import sys

import pytest


def test_a_training_that_is_killed_loses_nothing():
    pytest.importorskip("lightning")
    command = [sys.executable, "-m", "tests.fuzz.kill_training", "--kills=3", "--epochs=6"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the weights at the end are the same" in done.stdout
