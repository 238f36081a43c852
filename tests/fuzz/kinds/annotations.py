"""COCO's json and VOC's XML."""

from __future__ import annotations

import json
from pathlib import Path

from . import Kind
from .images import picture

CONTENT = {
    "images": [
        {"id": 7, "file_name": "a.png", "width": 64, "height": 48},
        {"id": 9, "file_name": "b.png", "width": 64, "height": 48},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 3, "bbox": [4, 5, 20, 30], "area": 300.5, "iscrowd": 0,
         "segmentation": [[4, 5, 24, 5, 24, 35.5], [5, 6, 7, 8, 9, 6, 4, 4]]},
        {"id": 2, "image_id": 7, "category_id": 1, "bbox": [0, 0, 64, 48], "area": 3072, "iscrowd": 1,
         "segmentation": {"size": [48, 64], "counts": [100, 2972]}},
        {"id": 3, "image_id": 9, "category_id": 1, "bbox": [0, 0, 10, 10],
         "segmentation": {"size": [48, 64], "counts": "PPPP2"}},
    ],
    "categories": [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}],
}  # fmt: skip


def _coco(folder: Path) -> list[tuple[Path, str]]:
    import numpy as np
    from PIL import Image
    from pycocotools import mask

    (folder / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(picture()).save(folder / "images" / name)
    content = json.loads(json.dumps(CONTENT))
    content["annotations"][2]["segmentation"] = {
        "size": [48, 64],
        "counts": mask.encode(np.asfortranarray(picture()[..., 0] > 128))["counts"].decode(),
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return [(path, "json")]


def _read_coco(folder: Path, path: Path) -> None:
    from quadtree_attention.data.recognition.annotations import read_coco
    from quadtree_attention.data.recognition.detection import DetectionDataset
    from quadtree_attention.errors import InputError

    for drop, masks in ((True, True), (False, False), (False, True)):
        images = read_coco(path, folder / "images", drop=drop, masks=masks).images
        for sample in range(len(images)):
            try:
                DetectionDataset(images, masks)[sample]
            except InputError as error:  # of the image, where the sizes of both are not the same
                raise InputError(f"{path.name}: {error}") from None


XML = b"""<annotation><filename>a.png</filename><size><width>64</width><height>48</height><depth>3</depth></size>
<object><name>cat</name><difficult>0</difficult>
<bndbox><xmin>4</xmin><ymin>5</ymin><xmax>24</xmax><ymax>35</ymax></bndbox></object>
<object><name>dog</name><difficult>1</difficult>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>64</xmax><ymax>48</ymax></bndbox></object>
</annotation>
"""


def _voc(folder: Path) -> list[tuple[Path, str]]:
    from PIL import Image

    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    Image.fromarray(picture()).save(folder / "JPEGImages" / "a.png")
    (folder / "Annotations" / "a.xml").write_bytes(XML)
    (folder / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    return [(folder / "Annotations" / "a.xml", "text"), (folder / "ImageSets" / "Main" / "train.txt", "text")]


def _read_voc(folder: Path, path: Path) -> None:
    from quadtree_attention.data.recognition.annotations import read_voc

    for drop in (True, False):
        read_voc(folder, "train", drop=drop)


def _bomb(levels: int) -> bytes:
    entities = '<!ENTITY a0 "x">' + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, levels))
    return f"<!DOCTYPE a [{entities}]><annotation>&a{levels - 1};</annotation>".encode()


HOSTILE_VOC = {
    "encoding": b"<?xml version='1.0' encoding='klingon'?>" + XML,
    "multi-byte": b"<?xml version='1.0' encoding='utf-7'?>" + XML,
    "cp65001": b"<?xml version='1.0' encoding='cp65001'?>" + XML,
    "hex": b"<?xml version='1.0' encoding='hex'?>" + XML,
    "entities": _bomb(12),
    "external": b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + XML.replace(b"cat", b"&x;"),
    "deep": b"<a>" * 200_000,
    "quadratic": b'<!DOCTYPE a [<!ENTITY x "'
    + b"x" * 100_000
    + b'">]><annotation>'
    + b"&x;" * 100_000
    + b"</annotation>",
    "huge": XML.replace(b"<width>64</width>", b"<width>" + b"9" * 10_000 + b"</width>"),
    "large-box": XML.replace(b"<xmin>4<", b"<xmin>1e999<"),
}

HOSTILE_COCO = {
    "deep": b"[" * 200_000,
    "short-counts": json.dumps(
        {
            **CONTENT,
            "annotations": [{**CONTENT["annotations"][1], "segmentation": {"size": [48, 64], "counts": [100, 20, 10]}}],
        }
    ).encode(),
    "infinite": json.dumps(
        {**CONTENT, "annotations": [{**CONTENT["annotations"][0], "segmentation": [[0, 0, 1e400, 5, 9, 9]]}]}
    ).encode(),
    "far": json.dumps(
        {**CONTENT, "annotations": [{**CONTENT["annotations"][0], "segmentation": [[0, 0, 1e8, 5, 9, 9e7]]}]}
    ).encode(),
    "digits": b'{"images": [{"id": ' + b"9" * 10_000 + b"}]}",
}

KINDS = [
    Kind("coco", _coco, _read_coco, HOSTILE_COCO, cases=150, needs="pycocotools"),
    Kind("voc", _voc, _read_voc, HOSTILE_VOC, cases=100),
]
