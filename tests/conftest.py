"""What several test files need."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: its kernels then run on the CPU

from quadtree_attention.models.loftr import LOFTR_PRESETS, LoFTR
from quadtree_attention.weights import save

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it; some tests send it


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory) -> Path:
    """A file of untrained weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    save(LoFTR(LOFTR_PRESETS["tiny"]), path)
    return path


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    """Something like a photograph, ``[120, 160, 3]`` uint8."""
    noise = np.random.default_rng(0).normal(size=(120, 160, 3)).cumsum(0).cumsum(1)
    return np.uint8(255 * (noise - noise.min()) / np.ptp(noise))
