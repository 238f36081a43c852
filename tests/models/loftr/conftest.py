"""Small configurations and the golden files."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from quadtree_attention.models.loftr import LoFTR, LoFTRConfig

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture(scope="session")
def golden():
    """``golden(name)``: the arrays of one file as tensors, and under "meta" its description."""

    def load(name):
        with np.load(GOLDEN / f"{name}.npz") as file:
            arrays = {key: torch.from_numpy(file[key]) for key in file.files if key != "meta"}
            if "meta" in file.files:
                arrays["meta"] = json.loads(str(file["meta"]))
        return arrays

    return load


@pytest.fixture(scope="session")
def published_keys():
    """Keys, shapes and dtypes of the published networks."""
    return json.loads((GOLDEN / "keys_loftr.json").read_text())


@pytest.fixture(scope="session")
def recipe():
    """The module that regenerates recipe weights."""
    spec = importlib.util.spec_from_file_location("golden_recipe", GOLDEN / "recipe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def small():
    """``small(**changes)``: a LoFTR of a few thousand weights that accepts every mutual neighbour, in eval mode."""

    def make(**changes):
        options = {"initial_dim": 8, "block_dims": (8, 8, 16), "blocks_per_stage": 1, "num_heads": 2, "num_layers": 1}
        options |= {"topk": (4, 4), "sr_pool": 2, "fine_heads": 2, "threshold": 0.0, "border": 0} | changes
        torch.manual_seed(0)
        return LoFTR(LoFTRConfig(**options)).eval()

    return make
