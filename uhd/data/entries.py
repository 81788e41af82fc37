"""What was found in the files of a set's pictures, in flat arrays: a set may have millions of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from uhd.data.labels import BadLine, LabelRows
from uhd.data.listing import label_candidates


@dataclass(frozen=True)
class Entry:
    """What was found in one picture's files.

    size (height, width) of the picture in its own pixels, (0, 0) where it cannot be read, and error then says why;
    labels of every class, as they stand in the file; label_path the file they came from.
    """

    size: tuple[int, int]
    labels: LabelRows
    label_path: str
    error: str = ""


NOT_LISTED = "not listed in the annotations"
"""The error of a picture that nobody has labelled, where annotations list those that somebody has."""

Found = tuple[int, Entry, NDArray[np.uint8] | None]
"""A picture's index, what its files hold, and its pixels [H,W,3] where it could be read."""


@dataclass(frozen=True)
class Entries:
    """The entries of n pictures.

    sizes [n,2] int64; counts [n] int64, how many of the label rows [k,5] float64 are each picture's, in order; twins
    [n] uint8, which of a picture's `label_candidates` is its label file; errors and bad_lines by the picture's index,
    where there are any. annotations: the file or folder of all labels, where they are not in files of their own, and
    class_names those of its classes.
    """

    paths: Sequence[str]
    sizes: NDArray[np.int64]
    counts: NDArray[np.int64]
    rows: NDArray[np.float64]
    twins: NDArray[np.uint8]
    errors: dict[int, str] = field(default_factory=dict)
    bad_lines: dict[int, tuple[BadLine, ...]] = field(default_factory=dict)
    annotations: str = ""
    class_names: tuple[str, ...] = ()

    @staticmethod
    def blank(paths: Sequence[str], annotations: str = "") -> Entries:
        """Entries without anything in them."""
        count = len(paths)
        sizes, rows = np.zeros((count, 2), np.int64), np.empty((0, 5))
        twins = np.zeros(count, np.uint8)
        return Entries(paths, sizes, np.zeros(count, np.int64), rows, twins, annotations=annotations)

    def __len__(self) -> int:
        return len(self.paths)

    def label_path(self, index: int) -> str:
        """The label file of a picture, or the annotations that have its labels."""
        return self.annotations or label_candidates(self.paths[index])[int(self.twins[index])]

    def entry(self, index: int) -> Entry:
        """All that is known of one picture. It counts rows from the start: not for a loop over all of them."""
        start = int(self.counts[:index].sum())
        labels = LabelRows(self.rows[start : start + self.counts[index]], self.bad_lines.get(index, ()))
        height, width = self.sizes[index].tolist()
        return Entry((height, width), labels, self.label_path(index), self.errors.get(index, ""))


class EntriesBuilder:
    """Takes entries one by one, in any order, over those of an older set of the same pictures."""

    def __init__(self, older: Entries) -> None:
        self._older = older
        self._sizes, self._counts, self._twins = older.sizes.copy(), older.counts.copy(), older.twins.copy()
        self._errors, self._bad_lines = dict(older.errors), dict(older.bad_lines)
        self._renewed = np.zeros(len(older), bool)
        self._rows: dict[int, NDArray[np.float64]] = {}

    def add(self, index: int, entry: Entry) -> None:
        """Sets the entry of one picture."""
        self._renewed[index] = True
        self._sizes[index] = entry.size
        self._counts[index] = len(entry.labels.rows)
        if not self._older.annotations:
            self._twins[index] = label_candidates(self._older.paths[index]).index(entry.label_path)
        self._rows.pop(index, None)
        if len(entry.labels.rows):
            self._rows[index] = entry.labels.rows
        self._errors.pop(index, None)
        self._bad_lines.pop(index, None)
        if entry.error:
            self._errors[index] = entry.error
        if entry.labels.bad_lines:
            self._bad_lines[index] = entry.labels.bad_lines

    def build(self, class_names: tuple[str, ...] = ()) -> Entries:
        """The entries as they are now; class_names: those of the annotations."""
        rows = np.empty((self._counts.sum(), 5))
        offsets = np.cumsum(self._counts) - self._counts
        older = self._older
        owners = np.repeat(np.arange(len(older)), older.counts)
        places = np.arange(len(older.rows)) - (np.cumsum(older.counts) - older.counts)[owners]
        kept = ~self._renewed[owners]
        rows[(offsets[owners] + places)[kept]] = older.rows[kept]
        for index, renewed in self._rows.items():
            rows[offsets[index] : offsets[index] + len(renewed)] = renewed
        found = self._sizes, self._counts, rows, self._twins, self._errors, self._bad_lines
        return Entries(older.paths, *found, older.annotations, class_names)
