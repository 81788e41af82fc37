"""What the formats of annotations have in common: pictures with boxes in pixels, and the names of the classes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from uhd.data.labels import BadLine, LabelRows, ignored_class, parse_number, refused, shortened
from uhd.data.limits import Limits

Format = Literal["yolo", "voc", "coco", "csv"]

MAX_SIDE = 2**31 - 1
MAX_COORDINATE = 1e9
"""Pixels; what is beyond is no box of a picture, and its products need not be finite."""

Size = tuple[int, int]
"""(height, width) in pixels, of the picture as it is shown."""


class Box(NamedTuple):
    """A box in pixels of its picture, corners from the upper left; label is a class, `ignored` leaves its place out."""

    label: int
    x1: float
    y1: float
    x2: float
    y2: float
    ignored: bool = False


@dataclass(frozen=True)
class Picture:
    """What annotations say of one picture.

    names: of its file, with `/` between folders; the first is the best, the others serve where it leads to no picture.
    other_names: what it may be called besides, which counts where nothing else claims the picture.
    size: (height, width) where the annotations tell it. rows [k,5] float64 (class, x1, y1, x2, y2) in pixels, with the
    class `ignored_class(c)` for a region that is to be ignored. place: where the picture stands in the file. file: its
    own file, where it has one.
    """

    names: tuple[str, ...]
    size: Size | None
    rows: NDArray[np.float64]
    bad_lines: tuple[BadLine, ...] = ()
    place: str = ""
    file: str = ""
    other_names: tuple[str, ...] = ()

    def label_rows(self, size: Size, limits: Limits) -> LabelRows:
        """The boxes as shares of the picture's size; one bad line where that is another one, or boxes are too many."""
        if self.size not in (None, size):
            said, real = (f"{width}x{height}" for height, width in (self.size or size, size))
            where = f"{self.place}: " if self.place else ""
            problem = f"{where}the size of {shortened(self.names[0])} is said to be {said}, but the picture is {real}"
            return refused(BadLine(0, problem, self.file))
        if len(self.rows) + len(self.bad_lines) > limits.max_boxes:
            where = self.place or self.names[0]
            return refused(BadLine(0, f"{where}: more boxes than --max-boxes {limits.max_boxes}", self.file))
        scale = np.array([size[1], size[0]], dtype=np.float64)
        upper_left, lower_right = self.rows[:, 1:3] / scale, self.rows[:, 3:] / scale
        middle, sides = (upper_left + lower_right) / 2, lower_right - upper_left
        return LabelRows(np.concatenate([self.rows[:, :1], middle, sides], axis=1), self.bad_lines)

    def boxes(self) -> list[Box]:
        """The boxes one by one."""
        found = []
        for value, *corners in self.rows.tolist():
            label = int(value)
            ignored = label < 0
            x1, y1, x2, y2 = corners
            found.append(Box(ignored_class(label) if ignored else label, x1, y1, x2, y2, ignored))
        return found


@dataclass(frozen=True)
class AnnotationSet:
    """The content of a file or folder of annotations.

    class_names: in the order of the classes; empty where the format only numbers them. lists_pictures: whether a
    picture that is missing was never looked at, instead of being empty. refused: files that could not be read at all.
    remarks: what else the user should know.
    """

    pictures: list[Picture]
    class_names: tuple[str, ...] = ()
    lists_pictures: bool = False
    refused: tuple[BadLine, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def num_boxes(self) -> int:
        """Boxes of all pictures, ignored regions included."""
        return sum(len(picture.rows) for picture in self.pictures)


def rows_of(boxes: Iterable[Box]) -> NDArray[np.float64]:
    """Boxes as `Picture.rows` [k,5]."""
    rows = [(ignored_class(box.label) if box.ignored else box.label, *box[1:5]) for box in boxes]
    return np.array(rows, dtype=np.float64).reshape(-1, 5)


def coordinate(text: str, name: str) -> float:
    """A coordinate in pixels; ValueError with its name where the text is none."""
    value = parse_number(text.strip())
    if value is None:
        raise ValueError(f"{name}: {shortened(text.strip())} is not a number")
    return checked(value, name)


def checked(value: float, name: str) -> float:
    """A coordinate that a picture can have; ValueError with its name otherwise."""
    if not math.isfinite(value) or abs(value) > MAX_COORDINATE:
        raise ValueError(f"{name}: {value:g} is no coordinate in pixels")
    return value


def in_order_of_names(names: Sequence[str]) -> tuple[tuple[str, ...], dict[str, int]]:
    """The different names, sorted, and the class of each."""
    unique = tuple(sorted(set(names)))
    return unique, {name: index for index, name in enumerate(unique)}


def check_corners(left: float, top: float, right: float, bottom: float) -> None:
    """ValueError for corners in the wrong order. A box without an area is sound: it is dropped and counted later."""
    for low, high, names in ((left, right, ("xmin", "xmax")), (top, bottom, ("ymin", "ymax"))):
        if high < low:
            raise ValueError(f"{names[1]} {high:g} is below {names[0]} {low:g}")


def plain_name(name: str) -> str:
    """A picture's name in annotations as a path with `/`, without `./` or a leading `/`."""
    parts = [part for part in name.strip().replace("\\", "/").split("/") if part not in ("", ".")]
    return "/".join(parts)


def pixels(value: float) -> str:
    """A coordinate as text: whole where it is whole, else to 1/10,000 pixel."""
    text = f"{value:.4f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
