"""Boxes and masks of images as COCO's json files and VOC's XML folders have them, checked entry by entry."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from xml.etree import ElementTree

import numpy as np

from ...errors import InputError
from ...extras import require

SLACK = 1.0  # pixels by which a box may stick out of its image; it is clipped then
T = TypeVar("T")
IMAGE_FOLDERS, XML_FOLDERS = ("JPEGImages", "images"), ("Annotations", "annotations")


class BadEntry(InputError):
    """An entry of an annotation file that makes no sense."""


@dataclass(frozen=True, eq=False)
class AnnotatedImage:
    """One image and what is in it.

    path: of the image; size: (height, width); image_id: number in COCO's files, or place in the list; boxes: float32 ``[N, 4]``, x0, y0, x1,
    y1 in pixels; labels: int64 ``[N]``; crowd: bool ``[N]``, objects that are not counted as missed (VOC: difficult ones); areas: float32
    ``[N]``, by which results for small and large objects are told apart, of the box where the file gives none; outlines: polygons or run
    lengths of each object as in COCO's files, or None where there are none.
    """

    path: Path
    size: tuple[int, int]
    image_id: int
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    outlines: Sequence[Any] | None = None

    def masks(self) -> np.ndarray:
        """The outlines filled: uint8 ``[N, H, W]``."""
        if self.outlines is None:
            raise InputError(f"{self.path} has boxes only, expected outlines of the objects too")
        masks = require("pycocotools.mask", "detect")
        out = np.zeros((len(self.outlines), *self.size), np.uint8)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of numpy, about pycocotools
            for mask, outline in zip(out, self.outlines, strict=True):
                codes = outline
                if isinstance(outline, list) or isinstance(outline["counts"], list):
                    codes = masks.frPyObjects(outline, *self.size)
                mask[:] = masks.decode(masks.merge(codes) if isinstance(codes, list) else codes)
        return out


@dataclass(frozen=True, eq=False)
class Annotations:
    """All images of a split, the names of the classes, and their numbers in COCO's files."""

    images: list[AnnotatedImage]
    labels: list[str]
    category_ids: list[int] = field(default_factory=list)


class Checker:
    """What happens to bad entries: the first one raises, or all are dropped and counted."""

    def __init__(self, drop: bool) -> None:
        self.drop = drop
        self.dropped: list[BadEntry] = []

    def __call__(self, make: Callable[..., T], *arguments: Any) -> T | None:
        """What ``make(*arguments)`` returns; None if it raises `BadEntry` and those are dropped."""
        try:
            return make(*arguments)
        except BadEntry as error:
            if not self.drop:
                raise
            self.dropped.append(error)
            return None

    def warn(self, path: Path) -> None:
        """Say how many entries were dropped, if any."""
        if self.dropped:
            warnings.warn(
                f"{path}: {len(self.dropped)} bad entries were dropped, the first: {self.dropped[0]}", stacklevel=3
            )


def read_coco(path: Path, images: Path, *, drop: bool = False) -> Annotations:
    """Read a json file in COCO's format whose images are in the folder ``images``.

    Args:
        path: of the file.
        images: folder.
        drop: leave bad entries out, with a warning, instead of raising.

    Raises:
        ValueError: what is wrong with the file or one entry of it, in one line that names both.
        OSError: the file is missing.
    """
    content = read_json(path)
    for name in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise InputError(f"{path} has no list {name!r}, expected COCO's format: images, annotations, categories")
    check = Checker(drop)
    numbers: dict[Any, int] = {}
    names = []
    for n, entry in enumerate(sorted(content["categories"], key=lambda one: _get(one, "id", f"{path}: categories"))):
        numbers[entry["id"]] = n
        names.append(str(_get(entry, "name", f"{path}: category {entry['id']}")))
    here = {one.name for one in images.iterdir()} if images.is_dir() else set()
    found: dict[Any, tuple[dict[str, Any], list[Any]]] = {}
    for n, entry in enumerate(content["images"]):
        place = f"{path}: images[{n}]"
        for key in ("id", "file_name", "width", "height"):
            _get(entry, key, place)
        if entry["id"] in found:
            raise InputError(f"{place}: id {entry['id']} is there twice, expected one image of that number")
        name = entry["file_name"]
        if name not in here and not (images / name).is_file():
            check(_bad, f"{place}: image {images / name} does not exist")
            continue
        found[entry["id"]] = entry, []
    known = {entry.get("id") for entry in content["images"]}
    for n, entry in enumerate(content["annotations"]):
        place = f"{path}: annotations[{n}]"
        image = _get(entry, "image_id", place)
        if image in found:
            values = check(_coco, entry, place, found[image][0], numbers)
            if values is not None:
                found[image][1].append(values)
        elif image not in known:
            check(_bad, f"{place}: image_id {image!r} is not among the images")
    check.warn(path)
    out = []
    for image_id, (entry, objects) in found.items():
        boxes, labels, crowd, areas, outlines = zip(*objects, strict=True) if objects else ((),) * 5
        whole = list(outlines) if all(one is not None for one in outlines) else None
        size, place = (entry["height"], entry["width"]), images / entry["file_name"]
        out.append(AnnotatedImage(place, size, image_id, *_arrays(boxes, labels, crowd, areas), whole))
    return Annotations(out, names, list(numbers))


def read_voc(root: Path, split: str, labels: Sequence[str] | None = None, *, drop: bool = False) -> Annotations:
    """Read a folder as VOC has it: XML files in Annotations, images in JPEGImages, names of a split in ImageSets/Main/SPLIT.txt.

    Also annotations and images for the first two; without ImageSets, SPLIT.txt stands in the folder itself.

    Args:
        root: the folder.
        split: its name.
        labels: names of the classes in their order; by default all that occur, sorted.
        drop: leave bad entries out, with a warning, instead of raising.

    Raises:
        ValueError: what is wrong with a file or one entry of it, in one line that names both.
        OSError: a file or folder is missing.
    """
    xmls, pictures = (_folder(root, names) for names in (XML_FOLDERS, IMAGE_FOLDERS))
    lists = [root / "ImageSets" / "Main" / f"{split}.txt", root / f"{split}.txt"]
    listed = next((path for path in lists if path.is_file()), None)
    if listed is None:
        raise FileNotFoundError(f"{lists[0]} does not exist, expected a list of the images of {split}, one name a line")
    names = [line.split()[0] for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not names:
        raise InputError(f"{listed} is empty, expected names of images, one a line")
    files = {path.stem: path for path in sorted(pictures.iterdir())}
    check = Checker(drop)
    read = []
    for name in names:
        path = xmls / f"{name}.xml"
        image = files.get(name)
        if image is None:
            check(_bad, f"{path}: image {pictures / name}.* does not exist")
            continue
        size, objects = _voc(path, check)
        read.append((image, size, objects))
    known = list(labels) if labels is not None else sorted({one[0] for _, _, objects in read for one in objects})
    numbers = {name: n for n, name in enumerate(known)}
    out = []
    for n, (image, size, objects) in enumerate(read):
        kept = [one for one in objects if check(_known, one, numbers) is not None]
        boxes, crowd = [one[1] for one in kept], [one[2] for one in kept]
        areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in boxes]
        out.append(AnnotatedImage(image, size, n, *_arrays(boxes, [numbers[one[0]] for one in kept], crowd, areas)))
    check.warn(root)
    return Annotations(out, known)


def read_json(path: Path) -> Any:
    """The content of a json file; ValueError or OSError in one line if it is none."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, expected a json file in COCO's format")
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:  # bad json, or not text
        raise InputError(f"{path} is not json: {error}") from None


def _get(entry: Any, key: str, place: str) -> Any:
    if not isinstance(entry, Mapping) or key not in entry:
        raise InputError(f"{place} has no {key!r}")
    return entry[key]


def _bad(message: str) -> NoReturn:
    raise BadEntry(message)


def _coco(
    entry: Mapping[str, Any], place: str, image: Mapping[str, Any], numbers: Mapping[Any, int]
) -> tuple[Any, ...]:
    """Box, label, crowd, area and outline of one entry."""
    if "id" in entry:
        place += f" (id {entry['id']})"
    category = entry.get("category_id")
    if category not in numbers:
        raise BadEntry(f"{place}: category_id {category!r} is not among the categories")
    try:
        x, y, width, height = (float(value) for value in entry["bbox"])
    except (KeyError, TypeError, ValueError):
        raise BadEntry(f"{place}: bbox is {entry.get('bbox')!r}, expected 4 numbers: x, y, width, height") from None
    box = _box((x, y, x + width, y + height), (image["height"], image["width"]), place)
    crowd = bool(entry.get("iscrowd", 0))
    outline = entry.get("segmentation")
    if isinstance(outline, Mapping):
        good = "counts" in outline and list(outline.get("size", ())) == [image["height"], image["width"]]
    else:
        good = outline is None or (
            isinstance(outline, list)
            and all(isinstance(one, list) and len(one) >= 6 and len(one) % 2 == 0 for one in outline)
        )
    if not good:
        raise BadEntry(
            f"{place}: segmentation is neither polygons of at least 3 points nor run lengths of the image's size"
        )
    area = entry.get("area")
    area = float(area) if isinstance(area, int | float) else (box[2] - box[0]) * (box[3] - box[1])
    return box, numbers[category], crowd, area, outline or None


def _box(box: tuple[float, ...], size: tuple[int, int], place: str) -> tuple[float, ...]:
    height, width = size
    x0, y0, x1, y1 = box
    words = f"box {x0:g}, {y0:g}, {x1:g}, {y1:g} (x0, y0, x1, y1)"
    if not all(np.isfinite(box)):
        raise BadEntry(f"{place}: {words} is not finite")
    if x1 <= x0 or y1 <= y0:
        raise BadEntry(f"{place}: {words} has no area")
    if x0 < -SLACK or y0 < -SLACK or x1 > width + SLACK or y1 > height + SLACK:
        raise BadEntry(f"{place}: {words} is outside its image of {width}x{height} pixels")
    clipped = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        raise BadEntry(f"{place}: {words} has no area inside its image of {width}x{height} pixels")
    return clipped


def _folder(root: Path, names: Sequence[str]) -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise FileNotFoundError(f"{root} has no folder {' or '.join(names)}, expected VOC's layout")


def _voc(path: Path, check: Checker) -> tuple[tuple[int, int], list[tuple[str, tuple[float, ...], bool, str]]]:
    """Size of the image, and name, box, crowd and place of each object."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist, expected the annotations of an image that the split lists")
    try:
        tree = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise InputError(f"{path} is not XML: {error}") from None
    try:
        height, width = (int(tree.findtext(f"size/{side}", "")) for side in ("height", "width"))
    except ValueError:
        raise InputError(f"{path} has no size with width and height, expected VOC's format") from None

    def one(node: ElementTree.Element, place: str) -> tuple[str, tuple[float, ...], bool, str]:
        name = (node.findtext("name") or "").strip()
        if not name:
            raise BadEntry(f"{place} has no name")
        place = f"{place} ({name})"
        values = [node.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
        try:
            box = tuple(float(value or "") for value in values)
        except ValueError:
            raise BadEntry(f"{place}: bndbox is {values}, expected 4 numbers: xmin, ymin, xmax, ymax") from None
        crowd = (node.findtext("difficult") or "0").strip() not in ("0", "")
        return name, _box(box, (height, width), place), crowd, place

    objects = []
    for n, node in enumerate(tree.findall("object"), 1):
        found = check(one, node, f"{path}: object {n}")
        if found is not None:
            objects.append(found)
    return (height, width), objects


def _known(one: tuple[str, Any, bool, str], numbers: Mapping[str, int]) -> bool:
    if one[0] not in numbers:
        raise BadEntry(f"{one[3]}: class {one[0]!r} is unknown, expected one of {', '.join(numbers)}")
    return True


def _arrays(boxes: Any, labels: Any, crowd: Any, areas: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return (
        np.asarray(boxes, np.float32).reshape(-1, 4),
        np.asarray(labels, np.int64),
        np.asarray(crowd, bool),
        np.asarray(areas, np.float32),
    )
