"""Images with boxes for training and validation: augmentation, order, what a target holds."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from quadtree_attention.data.recognition.detection import DetectionData, part_crop


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Six images, each with a red rectangle whose box and mask are known; one has none, one a crowd only."""
    root = tmp_path_factory.mktemp("rectangles")
    (root / "annotations").mkdir()
    for split in ("train", "val"):
        (root / split).mkdir()
        content = {"images": [], "annotations": [], "categories": [{"id": 5, "name": "red"}]}
        for n in range(6):
            height, width = 40 + 4 * n, 60 - 3 * n
            pixels = np.full((height, width, 3), 40, np.uint8)
            x, y = 5 + n, 4 + 2 * n
            content["images"].append({"id": n, "file_name": f"{n}.png", "width": width, "height": height})
            if n != 4:
                pixels[y : y + 12, x : x + 20] = (250, 10, 10)
                polygon = [[x, y, x + 20, y, x + 20, y + 12, x, y + 12]]
                content["annotations"].append(
                    {
                        "id": n,
                        "image_id": n,
                        "category_id": 5,
                        "bbox": [x, y, 20, 12],
                        "iscrowd": int(n == 5),
                        "area": 100,
                        "segmentation": polygon,
                    }
                )
            Image.fromarray(pixels).save(root / split / f"{n}.png")
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def data(root, **changes):
    defaults = {
        "train_split": "train",
        "val_split": "val",
        "test_split": "val",
        "batch_size": 2,
        "num_workers": 0,
        "min_sizes": [48, 64],
    }
    return DetectionData(str(root), **{**defaults, **changes})


def test_boxes_and_masks_follow_the_image(root):
    """After all that is done to the image, its red part is where the box and the mask say."""
    module = data(root, masks=True, vflip=0.5, zoom_out=0.5, crop=0.5, max_size=90)
    seen = 0
    for epoch in range(3):
        loader = module.train_dataloader()
        loader.sampler.set_epoch(epoch)
        for images, targets in loader:
            assert set(targets[0]) == {"boxes", "labels", "masks"}
            for image, target in zip(images, targets, strict=True):
                assert type(image) is torch.Tensor
                assert image.dtype == torch.float32
                assert max(image.shape[1:]) <= 90
                red = (image[0] > 0.6) & (image[1] < 0.4)
                for box, mask in zip(target["boxes"], target["masks"], strict=True):
                    y, x = red.nonzero(as_tuple=True)
                    got = torch.stack((x.min(), y.min(), x.max() + 1, y.max() + 1))
                    assert (got - box).abs().max() <= 3
                    assert (red & (mask > 0)).sum() > 0.8 * red.sum()
                    seen += 1
    assert seen >= 10


def test_training_leaves_out_what_has_no_box(root):
    loader = data(root, batch_size=1).train_dataloader()
    assert len(loader.dataset) == 4
    assert all(target["labels"].tolist() == [0] for _, (target,) in loader)


def test_validation_has_all_and_as_it_is(root):
    found = [(images[0], targets[0]) for images, targets in data(root, batch_size=1, masks=True).val_dataloader()]
    assert [target["image_id"].item() for _, target in found] == list(range(6))
    assert [tuple(image.shape) for image, _ in found] == [(3, 40 + 4 * n, 60 - 3 * n) for n in range(6)]
    assert [target["iscrowd"].tolist() for _, target in found] == [[0], [0], [0], [0], [], [1]]
    assert found[1][1]["area"].tolist() == [100]
    assert found[1][1]["boxes"].tolist() == [[6, 6, 26, 18]]
    assert found[1][1]["masks"].sum() == 240
    assert found[1][0][:, 7, 7].tolist() == pytest.approx([250 / 255, 10 / 255, 10 / 255])


def test_order_and_augmentation_depend_on_the_seed_alone(root):
    def epoch(number, **changes):
        loader = data(root, distort=1.0, **changes).train_dataloader()
        loader.sampler.set_epoch(number)
        return [image for images, _ in loader for image in images]

    torch.manual_seed(0)
    first = epoch(0)
    torch.manual_seed(1)
    again, workers, later, other = epoch(0), epoch(0, num_workers=2), epoch(1), epoch(0, seed=1)
    for same in (again, workers):
        assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    for changed in (later, other):
        assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(first, changed, strict=True))
    loader = data(root, distort=1.0).train_dataloader()
    loader.load_state_dict({"epoch": 0, "batches": 1})
    assert torch.equal(next(iter(loader))[0][0], first[2])  # goes on after the first batch


def test_parts_cut_out():
    torch.manual_seed(0)
    sizes = {tuple(part_crop(10, 20)(torch.zeros(3, 15, 60)).shape[1:]) for _ in range(60)}
    assert {height for height, _ in sizes} == set(range(10, 16))
    assert {width for _, width in sizes} == set(range(10, 21))


def test_mistakes(root, tmp_path):
    with pytest.raises(ValueError, match="layout is 'yolo', expected coco or voc"):
        data(root, layout="yolo")
    with pytest.raises(ValueError, match="masks are wanted of layout voc"):
        data(root, layout="voc", masks=True)
    with pytest.raises(FileNotFoundError, match="does not exist, expected a folder with the data"):
        data(tmp_path / "none").class_names()
    with pytest.raises(ValueError, match="has 4 images with boxes, expected at least a batch of 9"):
        data(root, batch_size=9).train_dataloader()
    with pytest.raises(FileNotFoundError, match=r"instances_test\.json does not exist"):
        data(root, test_split="test").test_dataloader()
    module = data(root)
    one = module.annotations("val").images[0]
    Image.new("RGB", (61, 40)).save(tmp_path / "0.png")
    object.__setattr__(one, "path", tmp_path / "0.png")
    with pytest.raises(ValueError, match=r"0\.png has 61x40 pixels, expected 60x40 as in its annotations"):
        next(iter(module.val_dataloader()))


def test_every_split_has_the_numbers_of_training(root, tmp_path):
    """A validation file with other ids, or without the first class, has the classes' numbers, not its own; so has a network's list of classes."""
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    files = {split: tmp_path / "annotations" / f"instances_{split}.json" for split in ("train", "val")}
    content = json.loads(files["train"].read_text())
    content["categories"] = [{"id": 1, "name": "blue"}, {"id": 5, "name": "red"}]
    files["train"].write_text(json.dumps(content))
    _, targets = next(iter(data(tmp_path).val_dataloader()))
    assert [target["labels"].tolist() for target in targets] == [[1], [1]]
    module = data(tmp_path)
    module.use_labels(["red", "green", "blue"])
    assert next(iter(module.val_dataloader()))[1][0]["labels"].tolist() == [0]
    assert module.class_names() == ["red", "green", "blue"]
    with pytest.raises(ValueError, match="labels of the data are red, but the detector has blue, red"):
        data(tmp_path, labels=["red"]).use_labels(["blue", "red"])
    content["categories"][1]["name"] = "crimson"
    files["val"].write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"instances_val.json: class 'crimson' is unknown, expected some of blue, red; set"
    ):
        data(tmp_path).val_dataloader()
