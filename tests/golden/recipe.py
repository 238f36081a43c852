"""The deterministic weights of the ``*_recipe`` golden files, from numpy's legacy RandomState, which never changes."""

import hashlib
import math
import zlib

import numpy as np


def recipe_array(key: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """float32 weights of one state_dict entry, drawn from its name."""
    random = np.random.RandomState((zlib.crc32(key.encode()) + 1000003 * seed) % 2**32)
    noise = random.standard_normal(math.prod(shape)).reshape(shape)
    last = key.rsplit(".", 1)[-1]
    if last == "running_var":
        array = 1 + 0.2 * np.tanh(noise)
    elif last == "running_mean":
        array = 0.1 * noise
    elif len(shape) > 1:
        array = noise / math.sqrt(math.prod(shape[1:]))  # fan-in
    elif key.endswith("py_att.weight") or key == "weight":
        array = noise  # level weights
    elif last == "weight":
        array = 1 + 0.1 * noise  # norm scales
    else:
        array = 0.1 * noise  # biases
    return array.astype(np.float32)


def state_dict_sha256(state: dict[str, np.ndarray]) -> str:
    """Digest of the floating-point entries, as the golden files have it in their meta data."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode())
        digest.update(np.ascontiguousarray(state[key]).tobytes())
    return digest.hexdigest()
