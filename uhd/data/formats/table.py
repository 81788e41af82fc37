"""The csv of Tiny SSD: a line a box, `img_name,label,xmin,ymin,xmax,ymax`, corners in pixels.

Labels are class ids or names: if the first is a whole number, all are ids. Classes that have names are sorted by them.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from uhd.data.formats.base import (
    AnnotationSet,
    Box,
    Picture,
    check_corners,
    coordinate,
    in_order_of_names,
    pixels,
    plain_name,
    rows_of,
)
from uhd.data.labels import MAX_CLASS, BadLine, shortened

HEADER = ("img_name", "label", "xmin", "ymin", "xmax", "ymax")


class _Row(NamedTuple):
    name: str
    label: str
    box: Box


def parse_csv(data: bytes, source: str) -> AnnotationSet:
    """The content of a csv file; source, a flag and the file, stands before every error.

    ValueError where the file as a whole is malformed: no text, another header, a line without the name of a picture.
    Another malformed line is a bad line of its picture.
    """
    rows: dict[str, list[_Row]] = {}
    bad: dict[str, list[BadLine]] = {}
    numbered: bool | None = None
    for number, fields in _lines(data, source):
        name = plain_name(fields[0])
        if not name:
            raise ValueError(f"{source}:{number}: no name of a picture; expected {','.join(HEADER)}")
        of_picture, bad_lines = rows.setdefault(name, []), bad.setdefault(name, [])
        try:
            row = _read_row(name, fields, numbered)
        except ValueError as error:
            bad_lines.append(BadLine(number, str(error)))
            continue
        numbered = is_id(row.label) if numbered is None else numbered
        of_picture.append(row)
    if numbered is False:
        class_names, classes = in_order_of_names([row.label for found in rows.values() for row in found])
    else:
        class_names, classes = (), {}
    pictures = [
        Picture(
            (name,),
            None,
            rows_of(row.box._replace(label=classes[row.label] if classes else int(row.label)) for row in found),
            tuple(bad[name]),
        )
        for name, found in rows.items()
    ]
    return AnnotationSet(pictures, class_names)


def write_csv(pictures: Sequence[Picture], class_names: Sequence[str]) -> bytes:
    """A csv file; class_names empty writes the ids. Pictures without a box have no line, and ignored regions none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for picture in pictures:
        for box in picture.boxes():
            if not box.ignored:
                label = class_names[box.label] if class_names else str(box.label)
                writer.writerow([picture.names[0], label, *map(pixels, box[1:5])])
    return text.getvalue().encode()


def _lines(data: bytes, source: str) -> Iterator[tuple[int, list[str]]]:
    """The lines behind the header that are not empty, and the number of each."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{source}: not a text file; expected {','.join(HEADER)}") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        if tuple(map(str.strip, header)) != HEADER:
            raise ValueError(f"{source}:1: {shortened(','.join(header))}; expected the header {','.join(HEADER)}")
        for fields in reader:
            if any(map(str.strip, fields)):
                yield reader.line_num, fields
    except csv.Error as error:
        raise ValueError(f"{source}:{reader.line_num}: {error}") from None


def _read_row(name: str, fields: list[str], numbered: bool | None) -> _Row:
    if len(fields) != len(HEADER):
        raise ValueError(f"{len(fields)} fields; expected {len(HEADER)}: {','.join(HEADER)}")
    label = fields[1].strip()
    if not label:
        raise ValueError("no label; expected a class id or name")
    if numbered and not is_id(label):
        raise ValueError(f"label {shortened(label)} is not an integer >= 0, as the first label is")
    if (numbered or numbered is None) and is_id(label) and (len(label) > 10 or int(label) > MAX_CLASS):
        raise ValueError(f"label {shortened(label)} is too large; expected at most {MAX_CLASS}")
    left, top, right, bottom = (coordinate(text, column) for text, column in zip(fields[2:], HEADER[2:], strict=True))
    check_corners(left, top, right, bottom)
    return _Row(name, label, Box(0, left, top, right, bottom))


def is_id(label: str) -> bool:
    """Whether a label is a class id; a class whose name is one cannot be written by its name."""
    return label.isascii() and label.isdigit()
