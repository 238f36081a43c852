"""Recorded numbers of the original implementation (github Tangshitao/QuadTreeAttention, commit 549a1ef)."""

import json
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent


def load(name: str) -> tuple[dict[str, np.ndarray], dict]:
    """Arrays and description of one recorded case."""
    with np.load(GOLDEN / f"{name}.npz") as archive:
        arrays = {key: archive[key] for key in archive.files if key != "meta"}
        return arrays, json.loads(str(archive["meta"]))
