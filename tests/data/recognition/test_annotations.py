"""Annotation files: what is read, and what is said of bad ones."""

import copy
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask

from quadtree_attention.data.recognition.annotations import read_coco, read_voc

COCO = {
    "images": [
        {"id": 7, "file_name": "a.jpg", "width": 20, "height": 10},
        {"id": 9, "file_name": "b.jpg", "width": 8, "height": 8},
    ],
    "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}],
    "annotations": [
        {
            "id": 1,
            "image_id": 7,
            "category_id": 18,
            "bbox": [2, 1, 4, 5],
            "area": 17.5,
            "iscrowd": 0,
            "segmentation": [[2, 1, 6, 1, 6, 6, 2, 6]],
        },
        {
            "id": 2,
            "image_id": 7,
            "category_id": 3,
            "bbox": [10, 0, 10.5, 4],
            "iscrowd": 1,
            "segmentation": {"size": [10, 20], "counts": [100, 3, 97]},
        },
    ],
}


@pytest.fixture
def coco(tmp_path):
    """Writes a changed file, with its images."""
    (tmp_path / "images").mkdir()
    for entry in COCO["images"]:
        Image.new("RGB", (entry["width"], entry["height"])).save(tmp_path / "images" / entry["file_name"])

    def write(change=lambda content: None):
        content = copy.deepcopy(COCO)
        change(content)
        (tmp_path / "file.json").write_text(json.dumps(content))
        return tmp_path / "file.json", tmp_path / "images"

    return write


def test_coco(coco):
    found = read_coco(*coco())
    assert (found.labels, found.category_ids) == (["car", "dog"], [3, 18])
    a, b = found.images
    assert (a.path.name, a.size, a.image_id, b.image_id) == ("a.jpg", (10, 20), 7, 9)
    np.testing.assert_array_equal(
        a.boxes, np.float32([[2, 1, 6, 6], [10, 0, 20, 4]])
    )  # half a pixel outside is clipped
    assert (a.labels.tolist(), a.crowd.tolist(), a.areas.tolist()) == ([1, 0], [False, True], [17.5, 40.0])
    masks = a.masks()
    assert masks.shape == (2, 10, 20)
    assert masks[0].sum() == 20
    assert masks[0, 1:6, 2:6].all()
    assert masks[1].nonzero()[1].tolist() == [10, 10, 10]  # run lengths go down the columns
    assert b.boxes.shape == (0, 4)
    assert b.masks().shape == (0, 8, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("categories"), r"file\.json has no list 'categories', expected COCO's format"),
        (lambda c: c["images"][1].pop("width"), r"file\.json: images\[1\] has no 'width'"),
        (lambda c: c["images"][1].update(id=7), r"images\[1\]: id 7 is there twice"),
        (lambda c: c["categories"][0].pop("name"), r"categories\[0\] has no 'name'"),
        (lambda c: c["annotations"][1].pop("image_id"), r"annotations\[1\] has no 'image_id'"),
        (lambda c: c["categories"][1].update(id=18), r"categories\[1\]: id 18 is there twice, expected one category"),
        (lambda c: c["categories"][1].update(id=[18]), r"categories\[1\]: id is \[18\], expected a whole number"),
        (lambda c: c["categories"][1].update(id="18"), r"categories\[1\]: id is '18', expected a whole number"),
        (lambda c: c["categories"].append(None), r"categories\[2\] has no 'id'"),
        (lambda c: c["images"].append(3), r"images\[2\] has no 'file_name'"),
        (lambda c: c["annotations"].append([]), r"annotations\[2\] has no 'image_id'"),
    ],
)
def test_bad_files(coco, change, message):
    path, images = coco(change)
    for drop in (False, True):
        with pytest.raises(ValueError, match=message):
            read_coco(path, images, drop=drop)


def outlined(outline=None, **runs):
    """Gives the first object an outline."""
    return lambda c: c["annotations"][0].update(segmentation=runs or outline)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["images"][1].update(file_name="c.jpg"), r"images\[1\]: image .*images/c\.jpg does not exist"),
        (lambda c: c["annotations"][0].update(image_id=8), r"annotations\[0\]: image_id 8 is not among the images"),
        (
            lambda c: c["annotations"][0].update(category_id=1),
            r"annotations\[0\] \(id 1\): category_id 1 is not among the",
        ),
        (
            lambda c: c["annotations"][0].update(bbox=[1, 2, 3]),
            r"annotations\[0\] \(id 1\): bbox is \[1, 2, 3\], expected 4",
        ),
        (lambda c: c["annotations"][0].update(bbox="all"), r"bbox is 'all', expected 4 numbers: x, y, width, height"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 0, 3]), r"box 1, 2, 1, 5 \(x0, y0, x1, y1\) has no area"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, -3, 3]), r"has no area"),
        (
            lambda c: c["annotations"][0].update(bbox=[1, 2, 3, float("nan")]),
            r"bbox is \[1, 2, 3, nan\], expected 4 numbers",
        ),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, "3", 4]), r"bbox is \[1, 2, '3', 4\], expected 4 numbers"),
        (lambda c: c["annotations"][1].update(bbox=[15, 2, 9, 3]), r"annotations\[1\] .*is outside its image of 20x10"),
        (lambda c: c["annotations"][1].update(bbox=[20, 2, 0.5, 3]), r"has no area inside its image of 20x10"),
        (lambda c: c["annotations"][0].update(iscrowd="no"), r"iscrowd is 'no', expected 0 or 1"),
        (lambda c: c["annotations"][0].update(area=float("nan")), r"area is nan, expected a number of pixels"),
        (lambda c: c["annotations"][0].update(area="9"), r"area is '9', expected a number of pixels"),
        (lambda c: c["annotations"][0].update(category_id=[3]), r"category_id is \[3\], expected a whole number"),
        (lambda c: c["images"][1].update(width="64"), r"images\[1\]: width is '64', expected a whole number"),
        (lambda c: c["images"][1].update(width=0), r"images\[1\]: size is 0x8, expected 1 to"),
        (lambda c: c["images"][1].update(width=1e12), r"images\[1\]: size is 1000000000000x8, expected 1 to"),
        (
            lambda c: c["images"][1].update(file_name=None),
            r"images\[1\]: file_name is None, expected the name of a file",
        ),
        (lambda c: c["images"][1].update(file_name="\0"), r"images\[1\]: image .* does not exist"),
        (lambda c: c["images"][1].update(file_name="x" * 5000), r"images\[1\]: image .* does not exist"),
        (outlined([[1, 2, 3, 4]]), r"segmentation has a polygon \[1, 2, 3, 4\], expected at least 3 points"),
        (outlined([[1, 2, 3, 4, 5, float("nan")]]), r"segmentation has a polygon .*, expected at least 3 points"),
        (outlined([[1, 2, 1e8, 4, 5, 6]]), r"segmentation has a polygon .* that is far outside its image of 20x10"),
        (outlined([[1, 2, float("inf"), 4, 5, 6]]), r"segmentation has a polygon .*, expected at least 3 points"),
        (outlined([["1", 2, 3, 4, 5, 6]]), r"segmentation has a polygon .*, expected at least 3 points"),
        (outlined("all"), r"segmentation is 'all', expected polygons or run lengths"),
        (outlined(size=[20, 10], counts=[200]), r"segmentation has size \[20, 10\], expected \[10, 20\]"),
        (outlined(size=None, counts=[200]), r"segmentation has size None, expected \[10, 20\]"),
        (outlined(size=[10, 20], counts=[100, 20, 10]), r"has run lengths of 130 pixels in all, expected 200"),
        (outlined(size=[10, 20], counts=[300, -100]), r"has run lengths \[300, -100\], expected a list"),
        (outlined(size=[10, 20], counts="PPPP2"), r"has run lengths 'PPPP2'"),
        (outlined(size=[10, 20], counts="\u20ac"), r"has run lengths '.', which are not as pycocotools packs them"),
        (outlined(size=[10, 20], counts=None), r"has run lengths None, expected a list"),
    ],
)
def test_bad_entries_are_named_or_dropped(coco, change, message):
    path, images = coco(change)
    with pytest.raises(ValueError, match=message) as error:
        read_coco(path, images)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.warns(UserWarning, match=r"file\.json: 1 bad entries were dropped, the first: .*"):
        found = read_coco(path, images, drop=True)
    assert sum(len(one.labels) for one in found.images) + len(found.images) == 3


@pytest.mark.parametrize("outline", [None, []])
def test_objects_without_an_outline_are_bad_only_where_masks_are_wanted(coco, outline):
    path, images = coco(outlined(outline))
    assert len(read_coco(path, images).images[0].labels) == 2
    with pytest.raises(ValueError, match=r"annotations\[0\] \(id 1\) has no segmentation, expected an outline"):
        read_coco(path, images, masks=True)
    with pytest.warns(UserWarning, match="1 bad entries were dropped"):
        found = read_coco(path, images, masks=True, drop=True)
    assert found.images[0].masks().shape == (1, 10, 20)


def test_packed_run_lengths_are_those_of_pycocotools(coco):
    rng = np.random.default_rng(0)
    for share in (0.0, 0.02, 0.5, 1.0):
        want = np.asfortranarray(rng.random((10, 20)) < share, np.uint8)
        codes = mask.encode(want)
        path, images = coco(outlined(size=[10, 20], counts=codes["counts"].decode()))
        np.testing.assert_array_equal(read_coco(path, images).images[0].masks()[0], want)


def test_what_is_no_json(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match=r"deep\.json is nested too deeply"):
        read_coco(tmp_path / "deep.json", tmp_path)
    (tmp_path / "text.json").write_text("{1")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    for name, message in (("text", "is not json"), ("bytes", "is not json"), ("list", "has no list 'images'")):
        with pytest.raises(ValueError, match=message):
            read_coco(tmp_path / f"{name}.json", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none\.json does not exist"):
        read_coco(tmp_path / "none.json", tmp_path)


OBJECT = "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"


@pytest.fixture
def voc(tmp_path):
    """A folder of two images, and a way to change the objects of the second."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("one", "two"):
        Image.new("RGB", (30, 20)).save(tmp_path / "JPEGImages" / f"{name}.jpg")
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("two\none\n\n")

    def write(*objects, text=None, size="<size><width>30</width><height>20</height></size>"):
        (tmp_path / "Annotations" / "one.xml").write_text(
            f"<annotation>{size}{OBJECT.format('cat', 1, 1, 2, 5, 6)}</annotation>"
        )
        body = text or f"<annotation>{size}{''.join(objects)}</annotation>"
        (tmp_path / "Annotations" / "two.xml").write_text(body)
        return tmp_path

    return write


def test_voc(voc):
    root = voc(OBJECT.format("dog", 0, 3, 4, 30, 20), OBJECT.format("bird", 0, 0, 0, 2, 2))
    found = read_voc(root, "train")
    assert found.labels == ["bird", "cat", "dog"]
    two, one = found.images
    assert (two.path.name, two.size, two.image_id, one.image_id) == ("two.jpg", (20, 30), 0, 1)
    assert two.boxes.tolist() == [[3, 4, 30, 20], [0, 0, 2, 2]]
    assert (two.labels.tolist(), two.crowd.tolist(), one.crowd.tolist()) == ([2, 0], [False, False], [True])
    assert two.areas.tolist() == [27 * 16, 4]
    with pytest.raises(ValueError, match="has boxes only"):
        one.masks()
    for old, new in (
        ("Annotations", "annotations"),
        ("JPEGImages", "images"),
        ("ImageSets/Main/train.txt", "train.txt"),
    ):
        (root / old).rename(root / new)
    assert len(read_voc(root, "train", ["dog", "cat", "bird"]).images) == 2


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ([OBJECT.format("", 0, 1, 1, 2, 2)], r"two\.xml: object 1 has no name"),
        ([OBJECT.format("cat", 0, 1, 1, 1, 2)], r"two\.xml: object 1 \(cat\): box 1, 1, 1, 2 .* has no area"),
        ([OBJECT.format("cat", 0, 1, 1, 40, 2)], r"two\.xml: object 1 \(cat\): box .* is outside its image of 30x20"),
        ([OBJECT.format("cat", 0, 1, 1, "x", 2)], r"two\.xml: object 1 \(cat\): bndbox is \['1', '1', 'x', '2'\]"),
        (["<object><name>cat</name></object>"], r"bndbox is \[None, None, None, None\], expected 4 numbers"),
        (
            [OBJECT.format("cow", 0, 1, 1, 4, 2)],
            r"two\.xml: object 1 \(cow\): class 'cow' is unknown, expected one of cat, dog",
        ),
    ],
)
def test_bad_objects_are_named_or_dropped(voc, objects, message):
    root = voc(*objects)
    with pytest.raises(ValueError, match=message):
        read_voc(root, "train", ["cat", "dog"])
    with pytest.warns(UserWarning, match="1 bad entries were dropped"):
        found = read_voc(root, "train", ["cat", "dog"], drop=True)
    assert [len(one.labels) for one in found.images] == [0, 1]


@pytest.mark.parametrize("encoding", ["klingon", "utf-7", "hex"])
def test_encodings_that_python_does_not_have(voc, encoding):
    root = voc()
    path = root / "Annotations" / "two.xml"
    path.write_text(f"<?xml version='1.0' encoding='{encoding}'?>{path.read_text()}")
    with pytest.raises(ValueError, match=r"two\.xml is not XML: "):
        read_voc(root, "train")


def test_entities_are_not_expanded(voc):
    root = voc()
    path = root / "Annotations" / "two.xml"
    entities = "".join(f"<!ENTITY a{n + 1} '{f'&a{n};' * 10}'>" for n in range(5))
    path.write_text(
        f"<!DOCTYPE a [<!ENTITY a0 'x'>{entities}]>{path.read_text().replace('</annotation>', '&a5;</annotation>')}"
    )
    with pytest.raises(ValueError, match=r"two\.xml is not XML: it has a document type, expected none"):
        read_voc(root, "train")


def test_bad_folders(voc, tmp_path):
    root = voc(text="<annotation><object>")
    with pytest.raises(ValueError, match=r"two\.xml is not XML: "):
        read_voc(root, "train")
    voc(size="")
    with pytest.raises(ValueError, match=r"two\.xml has no size with width and height"):
        read_voc(root, "train")
    with pytest.raises(FileNotFoundError, match=r"val\.txt does not exist, expected a list of the images of val"):
        read_voc(root, "val")
    (root / "val.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"val\.txt is empty"):
        read_voc(root, "val")
    (root / "Annotations" / "two.xml").unlink()
    with pytest.raises(FileNotFoundError, match=r"two\.xml does not exist"):
        read_voc(root, "train")
    voc()
    (root / "JPEGImages" / "two.jpg").unlink()
    with pytest.raises(ValueError, match=r"train\.txt: image .*two\.\* does not exist, two\.xml would be"):
        read_voc(root, "train")
    (root / "ImageSets" / "Main" / "train.txt").write_text("x" * 5000)
    with pytest.raises(ValueError, match=r"train\.txt: image .* does not exist") as error:
        read_voc(root, "train")
    assert len(str(error.value)) < 500
    (root / "ImageSets" / "Main" / "train.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"train\.txt is not text, expected names of images"):
        read_voc(root, "train")
    with pytest.raises(FileNotFoundError, match="has no folder Annotations or annotations"):
        read_voc(root / "JPEGImages", "train")
