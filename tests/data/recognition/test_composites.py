import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from quadtree_attention.data.recognition.composites import CompositeData, CompositeDataset, Pasting, read_cutout

PLAIN = Pasting(count=(2, 2), turn=0, light=1, noise=0)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Grey photographs; cut-outs: red discs and green squares."""
    root = tmp_path_factory.mktemp("composites")
    rows, columns = np.indices((40, 40))
    disc = (rows - 19.5) ** 2 + (columns - 19.5) ** 2 < 300
    for split in ("train", "validation", "test"):
        for name, color, inside in (("disc", (255, 0, 0), disc), ("square", (0, 255, 0), np.ones_like(disc))):
            (root / "cutouts" / split / name).mkdir(parents=True)
            image = np.dstack([np.broadcast_to(np.uint8(color), (40, 40, 3)), np.uint8(255 * inside)])
            Image.fromarray(image).save(root / "cutouts" / split / name / "a.png")
        (root / "photos" / split).mkdir(parents=True)
        Image.new("RGB", (100, 80), (128, 128, 128)).save(root / "photos" / split / "a.png")
    return root


def dataset(root, pasting=PLAIN, **changes):
    options = {"size": (64, 48), "length": 20, "seed": 0, **changes}
    return CompositeDataset(root / "cutouts" / "train", root / "photos" / "train", pasting=pasting, **options)


def test_masks_are_exact(root):
    """Wherever the colour is a class's, the mask has its number, and nowhere else; antialiased borders are left out."""
    found = dataset(root)
    assert found.labels == ["background", "disc", "square"]
    seen = set()
    for n in range(20):
        image, mask = found[n]
        assert (image.shape, image.dtype, mask.shape, mask.dtype) == ((64, 48, 3), np.uint8, (64, 48), np.uint8)
        for label, color in ((0, (128, 128, 128)), (1, (255, 0, 0)), (2, (0, 255, 0))):
            pure = (np.abs(image.astype(int) - color) < 4).all(-1)
            assert (mask[pure] == label).all()
            seen |= {label} if pure.any() else set()
    assert seen == {0, 1, 2}


def test_samples_depend_on_seed_and_number_alone(root):
    changed = Pasting(tint=0.5)
    one, again, other = (dataset(root, changed, seed=seed) for seed in (0, 0, 1))
    again[5]
    np.testing.assert_array_equal(one[3][0], again[3][0])
    np.testing.assert_array_equal(one[3][1], again[3][1])
    assert (one[3][0] != one[4][0]).any()
    assert (one[3][0] != other[3][0]).any()


def test_count_and_scale(root):
    one = Pasting(count=(1, 1), scale=(0.5, 0.5), turn=0)
    areas = [np.count_nonzero(dataset(root, one, size=(64, 64))[n][1] == 2) for n in range(20)]
    assert max(areas) == pytest.approx(32 * 32, rel=0.1)  # half of the side, where it is inside
    assert not dataset(root, Pasting(count=(0, 0)))[0][1].any()


def test_the_data_of_a_training(root):
    options = {"size": (32, 32), "batch_size": 4, "length": 8, "val_length": 3, "test_length": 2, "num_workers": 0}
    data = CompositeData(str(root / "cutouts"), str(root / "photos"), **options)
    assert data.class_names() == ["background", "disc", "square"]
    loader = data.train_dataloader()
    batches = list(loader)
    assert [(tuple(images.shape), tuple(masks.shape)) for images, masks in batches] == [
        ((4, 3, 32, 32), (4, 32, 32))
    ] * 2
    assert batches[0][1].dtype == torch.int64
    first = next(iter(loader))
    assert torch.equal(first[0], batches[0][0])
    loader.sampler.set_epoch(1)  # the stream goes on
    assert not torch.equal(next(iter(loader))[0], batches[0][0])
    (images, masks), *rest = data.val_dataloader()
    assert not rest
    assert len(images) == len(masks) == 3
    assert not torch.equal(images[0], data.test_dataloader().dataset[0][0])
    with pytest.raises(ValueError, match="length is 2, expected at least one batch of 4"):
        CompositeData(str(root / "cutouts"), str(root / "photos"), batch_size=4, length=2).train_dataloader()


def test_mistakes(root, tmp_path):
    with pytest.raises(
        FileNotFoundError, match="does not exist, expected a folder with one folder of cut-outs a class"
    ):
        CompositeDataset(tmp_path / "none", root / "photos", (32, 32), 1)
    with pytest.raises(ValueError, match="has 0 folders, expected one for each class"):
        CompositeDataset(tmp_path, root / "photos", (32, 32), 1)
    Image.new("RGB", (5, 5)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png is no cut-out, expected an 8-bit image with an alpha channel"):
        read_cutout(tmp_path / "a.png")
    Image.new("RGBA", (5, 5)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png is transparent everywhere"):
        read_cutout(tmp_path / "a.png")


def test_cutouts_lose_borders_and_size(tmp_path):
    image = np.zeros((300, 600, 4), np.uint8)
    image[20:270, 100:600] = (10, 20, 200, 255)
    Image.fromarray(image).save(tmp_path / "a.png")
    found = read_cutout(tmp_path / "a.png")
    assert found.shape == (64, 128, 4)
    assert found[30, 60].tolist() == [10, 20, 200, 255]


def test_every_split_has_the_numbers_of_training(root, tmp_path):
    """Without cut-outs of the first class, the second keeps its number; hidden folders are no class."""
    for part in ("cutouts", "photos"):
        shutil.copytree(root / part, tmp_path / part)
    shutil.rmtree(tmp_path / "cutouts" / "validation" / "disc")
    (tmp_path / "cutouts" / "validation" / ".ipynb_checkpoints").mkdir()
    options = {"size": (32, 32), "val_length": 3, "num_workers": 0, "pasting": PLAIN}
    data = CompositeData(str(tmp_path / "cutouts"), str(tmp_path / "photos"), **options)
    ((_, masks),) = data.val_dataloader()
    assert {int(label) for mask in masks for label in mask.unique()} <= {0, 2}
    assert any((mask == 2).any() for mask in masks)
    (tmp_path / "cutouts" / "test" / "disc").rename(tmp_path / "cutouts" / "test" / "disk")
    with pytest.raises(
        ValueError, match="has a class 'disk' that the training cut-outs have not, expected some of disc, square"
    ):
        data.test_dataloader()
