import pytest
from PIL import Image


@pytest.fixture
def photos(tmp_path, photo):
    """Two overlapping photographs as files."""
    paths = []
    for name, part in (("a.png", photo[:, :140]), ("b.png", photo[:, 16:])):
        Image.fromarray(part).save(tmp_path / name)
        paths.append(str(tmp_path / name))
    return paths
