"""COCO's json: `images`, `annotations` and `categories`, boxes as left, top, width, height in pixels.

Categories become classes in the order of their ids; those of one name are one class. An annotation that is a crowd
(`iscrowd`) or marked `ignore` is a region to be ignored.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, TypeGuard

from uhd.data.formats.base import MAX_SIDE, AnnotationSet, Box, Picture, Size, checked, pixels, plain_name, rows_of
from uhd.data.labels import BadLine, shortened

_UNUSED = ("segmentation", "keypoints", "counts")
"""Most of what COCO's own files are made of."""
_MOST_REMARKED = 200

Json = dict[str, Any]


def parse_coco(data: bytes, source: str) -> AnnotationSet:
    """The content of a COCO file; source, a flag and the file, stands before every error.

    ValueError where the file as a whole is malformed: no JSON, no lists of images, annotations and categories, two of
    one id or name, an image without a name. An annotation that is malformed is a bad line of its picture.
    """
    content = _load(data, source)
    if not isinstance(content, dict):
        raise ValueError(f"{source}: {_kind(content)}; expected an object with images, annotations and categories")
    images, annotations, categories = (
        _objects(content, name, source) for name in ("images", "annotations", "categories")
    )
    class_names, classes = _read_categories(categories, source)
    places = _places_by_id(images, "images", source)
    boxes: dict[int, list[Box]] = defaultdict(list)
    bad: dict[int, list[BadLine]] = defaultdict(list)
    strays: list[int] = []
    known: dict[int, int] = {}
    for index, annotation in enumerate(annotations):
        _check_id(annotation, known, f"annotations[{index}]", "annotations", source)
        image_id = annotation.get("image_id")
        if not _is_int(image_id):
            raise ValueError(f"{source}: annotations[{index}].image_id: {_missing(annotation, 'image_id')}")
        image = places.get(image_id, -1)
        if image < 0:
            strays.append(index)
            continue
        try:
            boxes[image].append(_read_box(annotation, classes))
        except ValueError as error:
            bad[image].append(BadLine(0, f"annotations[{index}]{error}"))
    pictures = [
        Picture((name,), size, rows_of(boxes[i]), tuple(bad[i]), place=f"images[{i}]")
        for i, (name, size) in enumerate(_read_images(images, source))
    ]
    remarks: tuple[str, ...] = ()
    if strays:
        remarks = (f"{len(strays)} annotations are of pictures that it does not list, first annotations[{strays[0]}]",)
    return AnnotationSet(pictures, class_names, lists_pictures=True, remarks=remarks)


def write_coco(pictures: Sequence[Picture], class_names: Sequence[str]) -> bytes:
    """A COCO file; every picture has its size, and category ids count from 1."""
    annotations: list[Json] = []
    for image, picture in enumerate(pictures, start=1):
        for box in picture.boxes():
            left, top, right, bottom = (float(pixels(value)) for value in box[1:5])
            bbox = [float(pixels(value)) for value in (left, top, right - left, bottom - top)]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": box.label + 1,
                    "bbox": bbox,
                    "area": round(max(bbox[2], 0) * max(bbox[3], 0), 4),
                    "iscrowd": int(box.ignored),
                }
            )
    content = {
        "images": [_image(image, picture) for image, picture in enumerate(pictures, start=1)],
        "annotations": annotations,
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(class_names)],
    }
    return json.dumps(content, ensure_ascii=False).encode() + b"\n"


def _image(number: int, picture: Picture) -> Json:
    assert picture.size is not None
    return {"id": number, "file_name": picture.names[0], "height": picture.size[0], "width": picture.size[1]}


def _load(data: bytes, source: str) -> Any:
    try:
        # Dropped one by one: an outline takes many times the memory of its box.
        return json.loads(data.decode("utf-8-sig"), object_hook=_without_outlines, parse_constant=float)
    except UnicodeDecodeError:
        raise ValueError(f"{source}: not a text file; expected JSON") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{source}:{error.lineno}: not JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise ValueError(f"{source}: nested too deep; expected lists of images, annotations and categories") from None
    except ValueError as error:  # an integer of thousands of digits
        raise ValueError(f"{source}: {str(error)[:_MOST_REMARKED]}; expected JSON with plain numbers") from None


def _without_outlines(found: Json) -> Json:
    for name in _UNUSED:
        found.pop(name, None)
    return found


def _objects(content: Json, name: str, source: str) -> list[Json]:
    found = content.get(name)
    if not isinstance(found, list):
        problem = f"no {name}" if found is None else f"{name} is {_kind(found)}"
        raise ValueError(f"{source}: {problem}; expected a list of objects")
    for index, item in enumerate(found):
        if not isinstance(item, dict):
            raise ValueError(f"{source}: {name}[{index}]: {_kind(item)}; expected an object")
    return found


def _read_categories(categories: list[Json], source: str) -> tuple[tuple[str, ...], dict[int, int]]:
    """The names of the classes, and the class of each category id."""
    _places_by_id(categories, "categories", source)
    names: dict[str, int] = {}
    classes: dict[int, int] = {}
    for index, category in sorted(enumerate(categories), key=lambda item: item[1]["id"]):
        name = _text(category, "name", f"{source}: categories[{index}]")
        classes[category["id"]] = names.setdefault(name, len(names))
    return tuple(names), classes


def _read_images(images: list[Json], source: str) -> list[tuple[str, Size | None]]:
    """Name and size of each picture."""
    found: list[tuple[str, Size | None]] = []
    first_of: dict[str, int] = {}
    for index, image in enumerate(images):
        place = f"{source}: images[{index}]"
        name = plain_name(_text(image, "file_name", place))
        if not name:
            raise ValueError(f"{place}.file_name: {shortened(image['file_name'])} is not the name of a picture")
        first = first_of.setdefault(name, index)
        if first != index:
            raise ValueError(f"{place}.file_name: {shortened(name)} stands in images[{first}] too")
        sides = [_side(image, key, place) for key in ("height", "width")]
        found.append((name, (sides[0], sides[1]) if sides[0] and sides[1] else None))
    return found


def _places_by_id(items: list[Json], name: str, source: str) -> dict[int, int]:
    """The index of each id."""
    known: dict[int, int] = {}
    for index, item in enumerate(items):
        if not _is_int(item.get("id")):
            raise ValueError(f"{source}: {name}[{index}].id: {_missing(item, 'id')}")
        _check_id(item, known, f"{name}[{index}]", name, source)
    return known


def _check_id(item: Json, known: dict[int, int], place: str, name: str, source: str) -> None:
    """Notes an id, if there is one; ValueError for one that was there before."""
    if not _is_int(item.get("id")):
        return
    if item["id"] in known:
        raise ValueError(f"{source}: {place}.id: {str(item['id'])[:20]} stands twice in {name}; expected each id once")
    known[item["id"]] = len(known)


def _read_box(annotation: Json, classes: dict[int, int]) -> Box:
    """ValueError says where in the annotation it is malformed, and how."""
    category = annotation.get("category_id")
    if not _is_int(category):
        raise ValueError(f".category_id: {_missing(annotation, 'category_id')}")
    if category not in classes:
        raise ValueError(f".category_id: {str(category)[:20]} is none of categories")
    bbox = annotation.get("bbox")
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(_is_number(value) for value in bbox):
        problem = "missing" if bbox is None else f"{_kind(bbox)} is no box"
        raise ValueError(f".bbox: {problem}; expected four numbers: left, top, width, height")
    left, top, width, height = (_coordinate(value, f".bbox[{i}]") for i, value in enumerate(bbox))
    for i, (side, length) in enumerate((("width", width), ("height", height)), start=2):
        if length < 0:
            raise ValueError(f".bbox[{i}]: a {side} of {length:g}; expected at least 0")
    marks = [annotation.get(name, 0) for name in ("iscrowd", "ignore")]
    for name, mark in zip(("iscrowd", "ignore"), marks, strict=True):
        if mark not in (0, 1):
            raise ValueError(f".{name}: {shortened(str(mark)[:100])}; expected 0 or 1")
    return Box(classes[category], left, top, left + width, top + height, ignored=any(marks))


def _coordinate(value: float, name: str) -> float:
    try:
        return checked(float(value), name)
    except OverflowError:
        raise ValueError(f"{name}: a number of {len(str(value))} digits is no coordinate in pixels") from None


def _side(image: Json, key: str, place: str) -> int | None:
    """None where it is not told, or 0, as some tools write."""
    value = image.get(key)
    if value is None:
        return None
    if not _is_int(value) or not 0 <= value <= MAX_SIDE:
        raise ValueError(f"{place}.{key}: {shortened(str(value)[:100])}; expected a whole number of pixels")
    return int(value) or None


def _text(item: Json, key: str, place: str) -> str:
    value = item.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{place}.{key}: {_missing(item, key, 'a text')}")
    return value.strip()


def _missing(item: Json, key: str, expected: str = "a whole number") -> str:
    value = item.get(key)
    return f"{'missing' if value is None else _kind(value)}; expected {expected}"


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _kind(value: Any) -> str:
    """A value of JSON as an error names it."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return shortened(value) if isinstance(value, str) else json.dumps(value)[:20]
