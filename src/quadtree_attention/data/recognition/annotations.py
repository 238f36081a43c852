"""Reads boxes and masks from COCO's json files and VOC's XML folders, and checks each entry."""

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
from ..decoding import MAX_PIXELS, one_line
from .outlines import Outline, OutlineError, is_number, parse_outline, shown

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
    ``[N]``, by which results for small and large objects are told apart, of the box where the file gives none; outlines: of each object, or
    None for one that has none; None if the files have none at all.
    """

    path: Path
    size: tuple[int, int]
    image_id: int
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    areas: np.ndarray
    outlines: Sequence[Outline | None] | None = None

    def masks(self) -> np.ndarray:
        """The outlines filled: uint8 ``[N, H, W]``."""
        if self.outlines is None:
            raise InputError(f"{self.path} has boxes only, expected outlines of the objects too")
        out = np.zeros((len(self.outlines), *self.size), np.uint8)
        for mask, outline in zip(out, self.outlines, strict=True):
            if outline is None:
                raise InputError(f"{self.path} has an object without an outline, expected one of each")
            mask[:] = outline.mask()
        return out


@dataclass(frozen=True, eq=False)
class Annotations:
    """All images of a split, the names of the classes, and their numbers in COCO's files."""

    images: list[AnnotatedImage]
    labels: list[str]
    category_ids: list[int] = field(default_factory=list)


class Checker:
    """Handles bad entries: raises at the first one, or drops and counts all."""

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


def read_coco(path: Path, images: Path, *, drop: bool = False, masks: bool = False) -> Annotations:
    """Read a json file in COCO's format whose images are in the folder ``images``.

    Args:
        path: of the file.
        images: folder.
        drop: leave bad entries out, with a warning, instead of raising.
        masks: whether an object without an outline is a bad entry.

    Raises:
        ValueError: what is wrong with the file or one entry of it, in one line that names both.
        OSError: the file is missing.
    """
    content = read_json(path)
    for name in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise InputError(f"{path} has no list {name!r}, expected COCO's format: images, annotations, categories")
    check = Checker(drop)
    names: dict[int, str] = {}  # of categories; without them no label is known, so that a bad one always raises
    for n, entry in enumerate(content["categories"]):
        number, name = _category(entry, f"{path}: categories[{n}]")
        if number in names:
            raise InputError(
                f"{path}: categories[{n}]: id {number} is there twice, expected one category of that number"
            )
        names[number] = name
    numbers = {number: n for n, number in enumerate(sorted(names))}
    here = {one.name for one in images.iterdir()} if images.is_dir() else set()
    found: dict[int, tuple[_CocoImage, list[Any]]] = {}
    missing = set()
    for n, entry in enumerate(content["images"]):
        place = f"{path}: images[{n}]"
        image = check(_image, entry, place)
        if image is None:
            continue
        if image.number in found or image.number in missing:
            raise InputError(f"{place}: id {image.number} is there twice, expected one image of that number")
        if image.name not in here and not _is_file(images / image.name):
            missing.add(image.number)
            check(_bad, f"{place}: image {images / _shown_name(image.name)} does not exist")
            continue
        found[image.number] = image, []
    for n, entry in enumerate(content["annotations"]):
        place = f"{path}: annotations[{n}]"
        image_id = check(_image_of, entry, place)
        if image_id in found:
            values = check(_coco, entry, place, found[image_id][0], numbers, masks)
            if values is not None:
                found[image_id][1].append(values)
        elif image_id is not None and image_id not in missing:
            check(_bad, f"{place}: image_id {image_id} is not among the images")
    check.warn(path)
    out = []
    for number, (image, objects) in found.items():
        boxes, labels, crowd, areas, outlines = zip(*objects, strict=True) if objects else ((),) * 5
        whole = None if objects and all(one is None for one in outlines) else list(outlines)
        arrays = _arrays(boxes, labels, crowd, areas)
        out.append(AnnotatedImage(images / image.name, image.size, number, *arrays, whole))
    return Annotations(out, [names[number] for number in sorted(names)], sorted(names))


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
        raise FileNotFoundError(
            f"{lists[0]} does not exist, expected a list of the images of {split}, one name per line"
        )
    try:
        text = listed.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{listed} is not text, expected names of images, one per line") from None
    names = [line.split()[0] for line in text.splitlines() if line.strip()]
    if not names:
        raise InputError(f"{listed} is empty, expected names of images, one per line")
    files = {path.stem: path for path in sorted(pictures.iterdir())}
    check = Checker(drop)
    read = []
    for name in names:
        path = xmls / f"{name}.xml"
        image = files.get(name)
        if image is None:
            check(
                _bad,
                f"{listed}: image {pictures / _shown_name(name)}.* does not exist, {_shown_name(path.name)} would be its annotations",
            )
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
        raise InputError(f"{path} is not json: {one_line(error)}") from None
    except RecursionError:
        raise InputError(f"{path} is nested too deeply, expected COCO's format") from None


@dataclass(frozen=True)
class _CocoImage:
    """An image of COCO's files; size: (height, width)."""

    number: int
    name: str
    size: tuple[int, int]


def _category(entry: Any, place: str) -> tuple[int, str]:
    """Number and name of a category."""
    number, name = _whole(entry, "id", place), _get(entry, "name", place)
    if not isinstance(name, str | int | float):
        raise BadEntry(f"{place}: name is {shown(name)}, expected text")
    return number, str(name)


def _image(entry: Any, place: str) -> _CocoImage:
    name = _get(entry, "file_name", place)
    if not isinstance(name, str) or not name:
        raise BadEntry(f"{place}: file_name is {shown(name)}, expected the name of a file")
    height, width = (_whole(entry, side, place) for side in ("height", "width"))
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise BadEntry(f"{place}: size is {width}x{height}, expected 1 to {MAX_PIXELS} pixels")
    return _CocoImage(_whole(entry, "id", place), name, (height, width))


def _image_of(entry: Any, place: str) -> int:
    return _whole(entry, "image_id", place)


def _get(entry: Any, key: str, place: str) -> Any:
    if not isinstance(entry, Mapping) or key not in entry:
        raise InputError(f"{place} has no {key!r}")  # the file is of another format
    return entry[key]


def _whole(entry: Any, key: str, place: str) -> int:
    """A whole number of an entry, of 64 bits."""
    value = _get(entry, key, place)
    whole = type(value) is int or (isinstance(value, float) and value.is_integer())
    if not whole or not -(2**63) <= value < 2**63:
        raise BadEntry(f"{place}: {key} is {shown(value)}, expected a whole number")
    return int(value)


def _bad(message: str) -> NoReturn:
    raise BadEntry(message)


def _coco(
    entry: Mapping[str, Any], place: str, image: _CocoImage, numbers: Mapping[int, int], masks: bool
) -> tuple[Any, ...]:
    """Box, label, crowd, area and outline of one entry."""
    if "id" in entry:
        place += f" (id {shown(entry['id'])})"
    category = _whole(entry, "category_id", place)
    if category not in numbers:
        raise BadEntry(f"{place}: category_id {category} is not among the categories")
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(is_number(value) for value in box):
        raise BadEntry(f"{place}: bbox is {shown(box)}, expected 4 numbers: x, y, width, height")
    x, y, width, height = (float(value) for value in box)
    corners = _box((x, y, x + width, y + height), image.size, place)
    crowd = entry.get("iscrowd") or 0
    if crowd not in (0, 1):
        raise BadEntry(f"{place}: iscrowd is {shown(crowd)}, expected 0 or 1")
    area = entry.get("area")
    if area is None:
        area = (corners[2] - corners[0]) * (corners[3] - corners[1])
    elif not is_number(area) or not 0 <= area < np.finfo(np.float32).max:
        raise BadEntry(f"{place}: area is {shown(area)}, expected a number of pixels")
    outline = entry.get("segmentation")
    try:
        outline = parse_outline(outline, image.size) if outline else None
    except OutlineError as error:
        raise BadEntry(f"{place}: segmentation {error}") from None
    if masks and outline is None:
        raise BadEntry(f"{place} has no segmentation, expected an outline, as masks are wanted")
    return corners, numbers[category], bool(crowd), float(area), outline


def _shown_name(name: str) -> str:
    """A name of a file or class, shortened for a message."""
    return name if len(name) < 100 and name.isprintable() else shown(name)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


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


class _NoEntities(ElementTree.TreeBuilder):
    """XML without a document type, in which entities could grow without bound. VOC's files have none."""

    def doctype(self, *_: Any) -> NoReturn:
        raise ValueError("it has a document type, expected none")


def _voc(path: Path, check: Checker) -> tuple[tuple[int, int], list[tuple[str, tuple[float, ...], bool, str]]]:
    """Size of the image, and name, box, crowd and place of each object."""
    if not _is_file(path):
        raise FileNotFoundError(f"{path} does not exist, expected the annotations of an image that the split lists")
    try:
        tree = ElementTree.fromstring(path.read_bytes(), ElementTree.XMLParser(target=_NoEntities()))
    except (
        ElementTree.ParseError,
        LookupError,
        ValueError,
    ) as error:  # the latter two: of encodings that Python does not have
        raise InputError(f"{path} is not XML: {one_line(error)}") from None
    try:
        height, width = (int(float(tree.findtext(f"size/{side}", ""))) for side in ("height", "width"))
    except (ValueError, OverflowError):
        raise InputError(f"{path} has no size with width and height, expected VOC's format") from None
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise InputError(f"{path}: size is {width}x{height}, expected 1 to {MAX_PIXELS} pixels")

    def one(node: ElementTree.Element, place: str) -> tuple[str, tuple[float, ...], bool, str]:
        name = (node.findtext("name") or "").strip()
        if not name:
            raise BadEntry(f"{place} has no name")
        place = f"{place} ({_shown_name(name)})"
        values = [node.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
        try:
            box = tuple(float(value or "") for value in values)
        except ValueError:
            raise BadEntry(f"{place}: bndbox is {shown(values)}, expected 4 numbers: xmin, ymin, xmax, ymax") from None
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
        raise BadEntry(f"{one[3]}: class {shown(one[0])} is unknown, expected one of {', '.join(numbers):.200}")
    return True


def _arrays(boxes: Any, labels: Any, crowd: Any, areas: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return (
        np.asarray(boxes, np.float32).reshape(-1, 4),
        np.asarray(labels, np.int64),
        np.asarray(crowd, bool),
        np.asarray(areas, np.float32),
    )
