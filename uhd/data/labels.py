"""YOLO label files: lines of `class cx cy w h`, normalised by the picture's size."""

from __future__ import annotations

import errno
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uhd.data.limits import DEFAULT_LIMITS, Limits
from uhd.reading import read_plain

# Label files carry five or six decimals: a box that leaves the picture by less than this is merely rounded.
_ROUNDING = 1e-4
# Python reads more as a number: 1_0, and digits of other scripts.
_NUMBER = re.compile(r"[0-9.eE+-]+\Z")
MAX_CLASS = 2**31 - 1
"""The largest class id of a label file."""


@dataclass(frozen=True)
class BadLine:
    """A malformed line: its number from 1 (0: the file as a whole) and what is wrong with it.

    file: where it stands, if that is not the label file of its picture.
    """

    number: int
    problem: str
    file: str = ""

    def place(self, label_path: str) -> str:
        """`file:line`, or the file alone; label_path is the picture's label file."""
        file = self.file or label_path
        return f"{file}:{self.number}" if self.number else file


@dataclass(frozen=True)
class LabelRows:
    """The content of one label file: rows [k,5] float64 (class, cx, cy, w, h) and the lines left out of them.

    Annotations (`uhd.data.formats`) also have the class `ignored_class(c)`: a region with objects of class c that are
    not told apart, or hardly seen.
    """

    rows: NDArray[np.float64]
    bad_lines: tuple[BadLine, ...] = ()


NO_LABELS = LabelRows(np.empty((0, 5)))


def read_labels(path: str | Path, limits: Limits = DEFAULT_LIMITS) -> LabelRows:
    """Reads a label file; a missing file is one without boxes. A file that cannot be read is one bad line.

    One that is larger than limits.max_boxes lines can be is such a file, and its content is not looked at.
    """
    try:
        data = read_plain(path, limits.label_bytes)
    except FileNotFoundError:
        data = b""
    except OSError as error:
        hint = f" for --max-boxes {limits.max_boxes}" if error.errno == errno.EFBIG else ""
        return refused(BadLine(0, f"cannot be read ({error.strerror}{hint})"))
    return parse_labels(data, limits)


def parse_labels(data: bytes, limits: Limits = DEFAULT_LIMITS) -> LabelRows:
    """Parses the bytes of a label file: UTF-8 with or without a byte-order mark, any line ends, blank lines skipped.

    A file of more than limits.max_boxes lines, good or bad, is one bad line: the first beyond them.
    """
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        return refused(BadLine(0, "not a text file; expected lines of 'class cx cy w h'"))
    rows: list[list[float]] = []
    bad_lines: list[BadLine] = []
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields:
            continue
        if len(rows) + len(bad_lines) == limits.max_boxes:
            return refused(BadLine(number, f"more boxes than --max-boxes {limits.max_boxes}"))
        try:
            rows.append(_parse_fields(fields))
        except ValueError as error:
            bad_lines.append(BadLine(number, str(error)))
    return LabelRows(np.array(rows, dtype=np.float64).reshape(-1, 5), tuple(bad_lines))


def refused(line: BadLine) -> LabelRows:
    """No box of a file that is malformed as a whole."""
    return LabelRows(np.empty((0, 5)), (line,))


def _parse_fields(fields: list[str]) -> list[float]:
    if len(fields) != 5:
        hint = " (a polygon?)" if len(fields) > 6 else ""
        raise ValueError(f"{len(fields)} fields{hint}; expected 5: 'class cx cy w h'")
    if not (fields[0].isascii() and fields[0].isdigit()):
        raise ValueError(f"class {shortened(fields[0])} is not an integer >= 0")
    values = [float(fields[0])]
    if values[0] > MAX_CLASS:
        raise ValueError(f"class {shortened(fields[0])} is too large; expected at most {MAX_CLASS}")
    for field in fields[1:]:
        value = parse_number(field)
        if value is None:
            raise ValueError(f"{shortened(field)} is not a number; expected 'class cx cy w h'")
        values.append(value)
    return values


def parse_number(text: str) -> float | None:
    """A finite number in plain notation; None for any other text."""
    try:
        value = float(text) if _NUMBER.match(text) else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def shortened(text: str) -> str:
    """A text of unknown length as an error quotes it."""
    return repr(text if len(text) <= 20 else text[:20] + "...")


def ignored_class(label: int) -> int:
    """What stands for a class in the label rows of a region that is to be ignored; its own inverse."""
    return -1 - label


def clip_boxes(
    boxes_cxcywh: NDArray[np.float64],
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
    """Boxes [k,4] normalised cxcywh to corners inside the picture.

    Returns xyxy [k,4] float32 in 0..1, kept [k] (something is left of the box), and clipped [k] (kept, but it reached
    out of the picture by more than the rounding of label files).
    """
    half = boxes_cxcywh[:, 2:] / 2
    corners = np.concatenate([boxes_cxcywh[:, :2] - half, boxes_cxcywh[:, :2] + half], axis=1)
    inside = np.clip(corners, 0, 1)
    boxes = inside.astype(np.float32)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    clipped = kept & (np.abs(corners - inside) > _ROUNDING).any(axis=1)
    return boxes, kept, clipped
