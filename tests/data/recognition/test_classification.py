"""Labelled images: folders, tar files and shards; order and augmentation that depend on nothing but their seed."""

import io
import json
import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from quadtree_attention.data.recognition.classification import ClassificationData

# timm leaves it to the garbage collector to close image files
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file", "ignore::pytest.PytestUnraisableExceptionWarning")
NAMES = ["cat", "dog", "emu"]


def picture(label: int, n: int) -> Image.Image:
    """Its mean brightness tells the class."""
    pixels = np.random.default_rng(n).integers(0, 60, (40, 50, 3)) + 90 * label
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("animals")
    for split, count in (("train", 4), ("validation", 2), ("test", 1)):
        for label, name in enumerate(NAMES):
            (root / split / name).mkdir(parents=True)
            for n in range(count):
                picture(label, n).save(root / split / name / f"{n}.png")
    return root


def data(root, **options):
    return ClassificationData(str(root), **{"input_size": (3, 32, 32), "batch_size": 4, "num_workers": 0, **options})


def check(module, count):
    """Every image once, with the label that its brightness tells."""
    images, labels = map(torch.cat, zip(*module.val_dataloader(), strict=True))
    assert sorted(labels.tolist()) == sorted(list(range(3)) * count)
    brightness = (images.mean((1, 2, 3)) * 0.226 + 0.449) * 255
    assert torch.equal(((brightness - 30) / 90).round().long(), labels)
    batch, labels = next(iter(module.train_dataloader()))
    assert batch.shape == (4, 3, 32, 32)
    assert labels.dtype == torch.int64


def test_folder(folder):
    module = data(folder)
    check(module, 2)
    assert module.class_names() == NAMES
    assert len(module.test_dataloader().dataset) == 3
    assert module.preprocessing["input_size"] == (3, 32, 32)
    assert next(iter(data(folder, input_size=(1, 32, 32), mean=[0.5], std=[0.5]).val_dataloader()))[0].shape[1] == 1


def test_tar_files_of_folders(folder, tmp_path):
    for split in ("train", "validation"):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as tar:
            tar.add(folder / split, arcname=".")
    module = data(tmp_path)
    check(module, 2)
    assert module.class_names() == NAMES


def test_webdataset_shards(tmp_path):
    pytest.importorskip("webdataset")
    for split, shards, count in (("train", 2, 2), ("validation", 1, 2)):
        for shard in range(shards):
            with tarfile.open(tmp_path / f"{split}-{shard:04}.tar", "w") as tar:
                for label in range(3):
                    for n in range(count):
                        file = io.BytesIO()
                        picture(label, n).save(file, "png")
                        for suffix, content in (("png", file.getvalue()), ("cls", str(label).encode())):
                            entry = tarfile.TarInfo(f"{shard}{label}{n}.{suffix}")
                            entry.size = len(content)
                            tar.addfile(entry, io.BytesIO(content))
    options = {"dataset": "wds/animals", "train_split": "train-{0000..0001}.tar", "val_split": "validation-0000.tar"}
    module = data(tmp_path, **options, num_samples=(12, 6), num_workers=1)
    check(module, 2)
    assert module.class_names() is None


def tree(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        label = max(0, NAMES.index(name.split("/")[-2])) if name.split("/")[-2] in NAMES else 0
        picture(label, 0).save(root / name)


def packed(root):
    """The same splits as .tar files."""
    for split in [path for path in root.iterdir() if path.is_dir()]:
        with tarfile.open(root / f"{split.name}.tar", "w") as tar:
            tar.add(split, arcname=".")
        shutil.rmtree(split)


@pytest.mark.parametrize("tar", [False, True])
def test_every_split_has_the_numbers_of_training(tmp_path, tar):
    """A validation folder without the first class has the others' own numbers, not numbers from 0."""
    tree(tmp_path, *(f"train/{name}/{n}.png" for name in NAMES for n in (0, 1)))
    tree(tmp_path, "val/dog/0.png", "val/emu/0.png", "test/emu/0.png")
    if tar:
        packed(tmp_path)
    module = data(tmp_path)
    assert [int(label) for _, labels in module.val_dataloader() for label in labels] == [1, 2]
    assert [int(label) for _, labels in module.test_dataloader() for label in labels] == [2]
    assert module.class_names() == NAMES


@pytest.mark.parametrize("tar", [False, True])
def test_hidden_folders_and_files_are_none(tmp_path, tar):
    tree(tmp_path, *(f"train/{name}/{n}.png" for name in NAMES for n in (0, 1)), "val/dog/0.png", "val/dog/._1.png")
    tree(tmp_path, "train/.ipynb_checkpoints/0.png", "train/dog/.ipynb_checkpoints/0.png", "val/.trash/ant/0.png")
    if tar:
        packed(tmp_path)
    module = data(tmp_path)
    assert module.class_names() == NAMES
    assert len(module.train_dataloader().dataset) == 6
    assert [int(label) for _, labels in module.val_dataloader() for label in labels] == [1]


@pytest.mark.parametrize("tar", [False, True])
def test_a_class_that_training_has_not(tmp_path, tar):
    tree(tmp_path, "train/dog/0.png", "train/emu/0.png", "validation/dog/0.png", "validation/ant/0.png")
    if tar:
        packed(tmp_path)
    with pytest.raises(
        ValueError, match=r"validation.* has a class 'ant' that the training images have not; expected some of dog, emu"
    ):
        data(tmp_path).val_dataloader()


def test_a_split_that_is_not_there(folder, tmp_path):
    """It is never another one, or the whole folder."""
    tree(tmp_path, "train/dog/0.png", "train/emu/0.png", "images/emu/0.png")
    with pytest.raises(
        ValueError, match=r"has no images of 'validation', expected a folder validation .*; it has images, train; set"
    ):
        data(tmp_path).val_dataloader()
    with pytest.raises(ValueError, match="has no images of 'trian'"):
        data(folder, train_split="trian").train_dataloader()
    with pytest.raises(ValueError, match="has no images of 'tset'"):
        data(folder, test_split="tset").test_dataloader()
    with pytest.raises(ValueError, match="no images of 'trian' in torch/fashion_mnist, expected a split of train, "):
        data(folder, dataset="torch/fashion_mnist", train_split="trian").train_dataloader()
    with pytest.raises(ValueError, match="splits number their classes apart"):
        data(folder, dataset="torch/image_folder").train_dataloader()
    tree(tmp_path, "train/0.png")
    with pytest.raises(ValueError, match=r"train/0.png lies in no folder of a class, expected .*train/CLASS/0.png"):
        data(tmp_path).train_dataloader()


def test_a_shard_that_is_not_there(tmp_path):
    pytest.importorskip("webdataset")
    (tmp_path / "train-0000.tar").touch()
    with pytest.raises(FileNotFoundError, match=r"train-0001.tar does not exist, expected a shard of 'train-"):
        data(
            tmp_path, dataset="wds/animals", train_split="train-{0000..0001}.tar", num_samples=(4, 4)
        ).train_dataloader()


def test_augmentation_does_not_depend_on_workers_and_changes_with_the_epoch(folder):
    def epoch(number, workers):
        loader = data(folder, num_workers=workers).train_dataloader()
        loader.sampler.set_epoch(number)
        return [torch.cat(part) for part in zip(*loader, strict=True)]

    for one, other in zip(epoch(0, 0), epoch(0, 2), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert not torch.equal(epoch(0, 0)[0], epoch(1, 0)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": [0.5]}, "mean and std have 1 and 3 numbers, expected 3"),
        ({"repeats": 0}, "repeats is 0, expected at least 1"),
        ({"input_size": (3, 0, 32)}, r"input_size is \[3, 0, 32\], expected \[1 or 3 channels, height, width\]"),
        ({"dataset": "torch/nonsense"}, "no images of 'train': Unknown torchvision dataset"),
        ({"batch_size": 100}, "has 12 training images a device, expected at least one batch of 100"),
    ],
)
def test_mistakes(folder, options, message):
    with pytest.raises(ValueError, match=message):
        data(folder, **options).train_dataloader()
    with pytest.raises(
        FileNotFoundError, match=r"does not exist, expected a folder with one folder or \.tar file for each"
    ):
        data(folder / "none").train_dataloader()


def test_labels_of_a_file(folder, tmp_path):
    (tmp_path / "classes.txt").write_text("emu\ndog\ncat\n")
    module = data(folder, class_map=str(tmp_path / "classes.txt"))
    assert module.class_names() == ["emu", "dog", "cat"]
    assert [int(label) for _, labels in module.test_dataloader() for label in labels] == [2, 1, 0]
    alone = data(folder, class_map=str(tmp_path / "classes.txt"), train_split="none")  # as for a test
    assert alone.class_names() == ["emu", "dog", "cat"]
    json.dumps(module.preprocessing)


@pytest.mark.parametrize("kind", ["rand-m10-inc1-mstd0.5", "augmix-m10", "original", "v0r"])
def test_no_magnitude_is_an_error(folder, kind):
    """timm's posterize at the highest one keeps no bits, which Pillow 13 refuses: once in some thousand images of ImageNet's recipe."""
    (augmentation,) = (
        part
        for part in data(folder, auto_augment=kind)._transform(True).transforms
        if hasattr(part, "ops") or hasattr(part, "policy")
    )
    ops = [*getattr(augmentation, "ops", ()), *(op for group in getattr(augmentation, "policy", ()) for op in group)]
    image = picture(2, 0)
    for op in ops:
        op.prob, op.magnitude, op.magnitude_std = 1.0, 10, 0
        assert op(image).size == image.size
    if kind.startswith("rand"):
        (posterize,) = (op for op in ops if op.name == "PosterizeIncreasing")
        assert np.asarray(posterize(image)).max() == 0
        posterize.magnitude = 0
        assert np.asarray(posterize(image)).max() > 0
