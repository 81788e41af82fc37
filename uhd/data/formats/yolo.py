"""YOLO text as `uhd.data.labels` reads it, written: a file a picture, and the names of the classes."""

from __future__ import annotations

from collections.abc import Sequence

from uhd.data.formats.base import Picture

NAMES_FILES = ("classes.txt", "obj.names")
"""What labelImg and Darknet call the file of class names, one a line."""


def write_yolo(picture: Picture) -> bytes:
    """The label file of a picture, which has its size; ignored regions have no line.

    Ten decimals are less than 1/10,000 pixel of any picture.
    """
    assert picture.size is not None
    height, width = picture.size
    lines = []
    for box in picture.boxes():
        if not box.ignored:
            middle = (box.x1 + box.x2) / 2 / width, (box.y1 + box.y2) / 2 / height
            sides = (box.x2 - box.x1) / width, (box.y2 - box.y1) / height
            lines.append(" ".join([str(box.label), *(f"{value:.10f}" for value in (*middle, *sides))]) + "\n")
    return "".join(lines).encode()


def write_names(class_names: Sequence[str]) -> bytes:
    """A file for --names."""
    return "".join(f"{name}\n" for name in class_names).encode()
