import numpy as np
import pytest
from PIL import Image

from quadtree_attention.data.matching.made_scenes import SceneMaker


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Files of three pictures that are rough enough to be told apart."""
    folder, paths = tmp_path_factory.mktemp("photos"), []
    for k in range(3):
        noise = np.random.default_rng(k).normal(size=(150, 200)).cumsum(0).cumsum(1)
        paths.append(folder / f"{k}.png")
        Image.fromarray(np.uint8(255 * (noise - noise.min()) / np.ptp(noise))).save(paths[-1])
    return paths


@pytest.fixture(scope="session")
def maker(photos):
    return SceneMaker(photos, seed=5)
