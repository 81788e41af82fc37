"""Pascal VOC: an XML file a picture, boxes as corners in pixels.

Coordinates are taken as they stand, whether the tool that wrote them counted pixels from 0 or, as VOC did, from 1. An
object that is marked `difficult` is a region to be ignored, as VOC's own evaluation treats it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from xml.parsers import expat
from xml.sax.saxutils import escape

from uhd.data.formats.base import (
    MAX_SIDE,
    AnnotationSet,
    Box,
    Picture,
    Size,
    check_corners,
    coordinate,
    in_order_of_names,
    pixels,
    plain_name,
    rows_of,
)
from uhd.data.labels import BadLine, parse_number, shortened

_ROOT = "annotation"
_OBJECT = (_ROOT, "object")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_OF_PICTURE = {(_ROOT, "filename"), (_ROOT, "size", "width"), (_ROOT, "size", "height")}
# Parts of an object (head, hand) have names and boxes of their own, one level further down.
_OF_OBJECT = {(*_OBJECT, "name"), (*_OBJECT, "difficult"), *((*_OBJECT, "bndbox", name) for name in _CORNERS)}
_MOST_LEVELS = 32


class MalformedError(ValueError):
    """A file that is no annotation: the line that says so, and why."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(f"line {line}: {problem}")
        self.line = line
        self.problem = problem


@dataclass
class _Fields:
    """What stands in an element: name to text, and the line at which it begins."""

    line: int
    texts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class VocFile:
    """One XML file: a picture whose boxes still have the names of their classes."""

    names: tuple[str, ...]
    size: Size | None
    boxes: tuple[tuple[str, Box], ...]
    bad_lines: tuple[BadLine, ...]
    file: str
    other_names: tuple[str, ...] = ()


def parse_voc(data: bytes, file: str, name: str) -> VocFile:
    """The content of an XML file; name is its path without suffix, below the folder that all are in, with `/`.

    Raises MalformedError where it is no well-formed XML or no annotation. It never leaves the
    file: documents with a DOCTYPE, by which an entity would be declared, are refused. An object that is malformed is a
    bad line.
    """
    reader = _Reader()
    reader.read(data)
    texts = reader.picture.texts
    boxes, bad = [], []
    for found in reader.objects:
        try:
            boxes.append(_read_object(found.texts))
        except ValueError as error:
            bad.append(BadLine(found.line, str(error), file))
    filename = plain_name(texts.get("filename", ""))
    own, others = own_names(name), tuple[str, ...]()
    if not PurePosixPath(filename).suffix:  # nameless, or only the number of the picture
        names = own
    else:
        folder = str(PurePosixPath(name).parent)
        names = (filename,) if folder == "." else (f"{folder}/{filename}", filename)
        # Pictures are converted and renamed more often than what stands in their files.
        others = tuple(dict.fromkeys([*own, *(os.path.splitext(each)[0] for each in names)]))
    return VocFile(names, _read_size(texts, reader.picture.line), tuple(boxes), tuple(bad), file, others)


def own_names(name: str) -> tuple[str, ...]:
    """What the picture of an XML file is called after that file's name (see `parse_voc`)."""
    return name, PurePosixPath(name).name


def join_voc(files: Sequence[VocFile], refused: Sequence[BadLine] = ()) -> AnnotationSet:
    """The files of a folder as one set; classes are the names in sorted order."""
    class_names, classes = in_order_of_names([name for each in files for name, _ in each.boxes])
    pictures = [
        Picture(
            each.names,
            each.size,
            rows_of(box._replace(label=classes[name]) for name, box in each.boxes),
            each.bad_lines,
            file=each.file,
            other_names=each.other_names,
        )
        for each in files
    ]
    return AnnotationSet(pictures, class_names, refused=tuple(refused))


def write_voc(picture: Picture, class_names: Sequence[str]) -> bytes:
    """The XML file of a picture, which has its size."""
    assert picture.size is not None
    path = PurePosixPath(picture.names[0])
    height, width = picture.size
    lines = [
        "<annotation>",
        f"  <folder>{_escaped(path.parent.name)}</folder>",
        f"  <filename>{_escaped(path.name)}</filename>",
        f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>",
    ]
    for box in picture.boxes():
        corners = "".join(f"<{name}>{pixels(value)}</{name}>" for name, value in zip(_CORNERS, box[1:5], strict=True))
        lines += [
            "  <object>",
            f"    <name>{_escaped(class_names[box.label])}</name>",
            f"    <difficult>{int(box.ignored)}</difficult>",
            f"    <bndbox>{corners}</bndbox>",
            "  </object>",
        ]
    return "\n".join([*lines, "</annotation>", ""]).encode()


def _escaped(text: str) -> str:
    # XML has no way to write the other control characters.
    return escape("".join(letter for letter in text if letter >= " "))


class _Reader:
    """Walks through the XML and keeps the texts that are needed."""

    def __init__(self) -> None:
        self.picture = _Fields(1)
        self.objects: list[_Fields] = []
        self._path: list[str] = []
        self._text: list[str] = []
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._characters
        self._parser.StartDoctypeDeclHandler = self._refuse_doctype

    def read(self, data: bytes) -> None:
        """All of a file."""
        try:
            self._parser.Parse(data, True)
        except expat.ExpatError as error:
            reason = expat.errors.messages[error.code]
            raise MalformedError(error.lineno, f"not well-formed XML ({reason})") from None
        except MalformedError:
            raise
        except (LookupError, ValueError) as error:  # an encoding that does not exist, or of several bytes a letter
            raise MalformedError(1, f"an encoding that cannot be read ({str(error)[:80]})") from None

    def _refuse_doctype(self, *_: object) -> None:
        line = self._parser.CurrentLineNumber
        raise MalformedError(line, f"a DOCTYPE, which could declare entities; expected <{_ROOT}> without one")

    def _start(self, name: str, _: object) -> None:
        line = self._parser.CurrentLineNumber
        if not self._path and name != _ROOT:
            raise MalformedError(line, f"the file begins with <{name[:40]}>; expected <{_ROOT}>")
        if len(self._path) == _MOST_LEVELS:
            raise MalformedError(line, f"more than {_MOST_LEVELS} elements within each other")
        self._path.append(name)
        self._text = []
        if tuple(self._path) == _OBJECT:
            self.objects.append(_Fields(line))
        elif tuple(self._path) == (_ROOT, "size"):
            self.picture.line = line

    def _characters(self, text: str) -> None:
        self._text.append(text)

    def _end(self, name: str) -> None:
        path = tuple(self._path)
        target = self.picture if path in _OF_PICTURE else self.objects[-1] if path in _OF_OBJECT else None
        if target is not None:
            # An object has one box; a second one would be read as a part of the first.
            known = target.texts.get(name)
            target.texts[name] = "".join(self._text).strip() if known is None else f"{known} {''.join(self._text)}"
        self._path.pop()
        self._text = []


def _read_object(texts: dict[str, str]) -> tuple[str, Box]:
    name = texts.get("name", "")
    if not name:
        raise ValueError("an object without a name")
    missing = [corner for corner in _CORNERS if corner not in texts]
    if missing:
        raise ValueError(f"object {shortened(name)} without {missing[0]} in its bndbox")
    difficult = texts.get("difficult", "0")
    if difficult not in ("", "0", "1"):
        raise ValueError(f"difficult: {shortened(difficult)}; expected 0 or 1")
    left, top, right, bottom = (coordinate(texts[corner], corner) for corner in _CORNERS)
    try:
        check_corners(left, top, right, bottom)
    except ValueError as error:
        raise ValueError(f"object {shortened(name)}: {error}") from None
    return name, Box(0, left, top, right, bottom, ignored=difficult == "1")


def _read_size(texts: dict[str, str], line: int) -> Size | None:
    """(height, width); None where it is not told, or 0, as some tools write."""
    sides = []
    for name in ("height", "width"):
        value = parse_number(texts[name]) if texts.get(name) else 0
        if value is None or value != int(value) or not 0 <= value <= MAX_SIDE:
            raise MalformedError(line, f"{name} {shortened(texts[name])}; expected a whole number of pixels")
        sides.append(int(value))
    return (sides[0], sides[1]) if all(sides) else None
