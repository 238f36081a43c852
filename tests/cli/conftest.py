import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def written(tmp_path_factory, monkeypatch):
    """The list of what commands wrote, of this test alone."""
    path = tmp_path_factory.mktemp("cache") / "written.txt"
    monkeypatch.setattr("quadtree_attention.cli.outputs.written_list", lambda: path)
    return path


@pytest.fixture
def photos(tmp_path, photo):
    """Two overlapping photographs as files."""
    paths = []
    for name, part in (("a.png", photo[:, :140]), ("b.png", photo[:, 16:])):
        Image.fromarray(part).save(tmp_path / name)
        paths.append(str(tmp_path / name))
    return paths
