"""Which image a detection belongs to."""

import json

import numpy as np
import pytest
from PIL import Image

from quadtree_attention.__main__ import main
from quadtree_attention.predict.detection import Detections, Detector, image_numbers


@pytest.fixture(autouse=True)
def one_box(monkeypatch):
    """One red blood cell in every image; the images that were looked at are counted."""
    seen = []

    def detect(self, image, *, score=None):
        seen.append(image)
        box = np.float32([[1, 2, 9, 9]])
        return Detections(box, ("RBC",), np.ones(1, np.float32), np.zeros(1, np.int64), image.shape[:2])

    monkeypatch.setattr(Detector, "detect", detect)
    return seen


@pytest.fixture
def cameras(tmp_path, monkeypatch):
    for name in ("cam0/0001.jpg", "cam1/0001.jpg", "same/1.jpg", "same/0001.jpg", "named/street.jpg", "named/7.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30)).save(tmp_path / name)
    monkeypatch.chdir(tmp_path)


def annotate(*images):
    with open("a.json", "w") as file:  # noqa: PTH123
        json.dump({"images": [{"file_name": name, "id": number} for name, number in images]}, file)


def detected(*arguments):
    assert main(["detect", *arguments, "--out", "r.json", "-q"]) == 0
    with open("r.json") as file:  # noqa: PTH123
        return [(entry["image_id"], entry["file_name"]) for entry in json.load(file)]


@pytest.mark.usefixtures("cameras")
def test_entries_have_numbers_and_names():
    assert detected("named") == [(7, "7.jpg"), ("street.jpg", "street.jpg")]
    with open("r.json") as file:  # noqa: PTH123
        entry = json.load(file)[0]
    detector = Detector.from_pretrained("tiny", device="cpu")
    assert (entry["category_id"], entry["category_name"]) == (detector.config.ids[0], "RBC")


@pytest.mark.usefixtures("cameras")
@pytest.mark.parametrize(
    ("images", "names"),
    [
        (["cam0", "cam1"], ("cam0/0001.jpg", "cam1/0001.jpg")),
        (["cam0/0001.jpg", "cam1/0001.jpg"], ("cam0/0001.jpg", "cam1/0001.jpg")),
        (["same"], ("same/0001.jpg", "same/1.jpg")),
    ],
)
def test_two_images_of_one_number_are_an_error_before_the_work(images, names, one_box, capsys):
    assert main(["detect", *images, "--out", "r.json"]) == 2
    error = capsys.readouterr().err
    assert f"{names[0]} and {names[1]} would both be image 1 in --out; give --annotations" in error
    assert error.count("\n") == 1
    assert one_box == []
    assert main(["detect", *images, "-q"]) == 0  # without --out nobody needs numbers


@pytest.mark.usefixtures("cameras")
def test_annotations_are_looked_up_by_path(one_box, capsys):
    annotate(("cam0/0001.jpg", 10), ("cam1/0001.jpg", 11))
    both = [(10, "cam0/0001.jpg"), (11, "cam1/0001.jpg")]
    assert detected("cam0", "cam1", "--annotations", "a.json") == both
    assert detected("cam1/0001.jpg", "--annotations", "a.json") == [(11, "0001.jpg")]
    assert detected("cam1", "--annotations", "a.json") == [(11, "0001.jpg")]
    annotate(("0001.jpg", 12))
    assert detected("cam1", "--annotations", "a.json") == [(12, "0001.jpg")]
    one_box.clear()
    assert main(["detect", "cam0", "cam1", "--out", "r.json", "--annotations", "a.json"]) == 2
    assert (
        "cam0/0001.jpg and cam1/0001.jpg would both be image 12 in --out; give one of them" in capsys.readouterr().err
    )
    assert one_box == []
    annotate(("cam2/0001.jpg", 13))  # of another folder: not this image
    assert main(["detect", "cam0", "--out", "r.json", "--annotations", "a.json"]) == 2
    assert "0001.jpg is not among the images of a.json" in capsys.readouterr().err


def test_annotations_that_say_two_things(tmp_path):
    path = tmp_path / "a.json"
    for images, message in (
        ([{"file_name": "a.jpg", "id": 1}, {"file_name": "a.jpg", "id": 2}], r"has a\.jpg twice, as images 1 and 2"),
        ([{"file_name": None, "id": 1}], "has no images with file_name and id"),
        ([{"file_name": "a.jpg", "id": [1]}], "has no images with file_name and id"),
        ([{"id": 1}], "has no images with file_name and id"),
    ):
        path.write_text(json.dumps({"images": images}))
        with pytest.raises(ValueError, match=message):
            image_numbers(path)


def test_coco_reads_the_results(cameras, tmp_path):
    coco = pytest.importorskip("pycocotools.coco").COCO()
    coco.dataset = {"images": [{"id": 7}], "annotations": [], "categories": [{"id": 1, "name": "RBC"}]}
    coco.createIndex()
    assert main(["detect", "named/7.jpg", "--out", "r.json", "-q"]) == 0
    assert len(coco.loadRes("r.json").anns) == 1
