"""How much of pictures, label files and lists is read; a file beyond it is refused before memory is spent."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from uhd.config import DataConfig
from uhd.reading import read_plain

LIST_BYTES = 2**27
LIST_LINES = 5_000_000
PATH_BYTES = 4096
"""The longest path that Linux opens."""

_LEAST_PICTURE_BYTES = 2**24
_BYTES_A_PIXEL = 4
_LEAST_LABEL_BYTES = 2**12
_BYTES_A_BOX = 256


@dataclass(frozen=True)
class Limits:
    """The most pixels of a picture (--max-pixels), and the most boxes of a label file (--max-boxes)."""

    max_pixels: int = DataConfig.max_pixels
    max_boxes: int = DataConfig.max_boxes

    @classmethod
    def of(cls, cfg: DataConfig) -> Limits:
        """Those that the flags set."""
        return cls(cfg.max_pixels, cfg.max_boxes)

    @property
    def picture_bytes(self) -> int:
        """The largest picture file: hardly any is larger than its pixels; small ones may hold much beside them."""
        return max(_LEAST_PICTURE_BYTES, _BYTES_A_PIXEL * self.max_pixels)

    @property
    def label_bytes(self) -> int:
        """The largest label file; five numbers with all digits that a float has take half of this."""
        return _LEAST_LABEL_BYTES + _BYTES_A_BOX * self.max_boxes


DEFAULT_LIMITS = Limits()


def read_list_lines(path: str | Path, flag: str) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, without space around them, each with its number from 1.

    One line at a time, so that a file that is no list is refused at its first. ValueError names flag and file: one that
    cannot be read, is no text (UTF-8, with or without a byte-order mark) or too large, and a line that is no path.
    """
    try:
        data = read_plain(path, LIST_BYTES)
    except OSError as error:
        raise _unreadable(path, flag, error.strerror) from None
    lines = io.BytesIO(data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n"))
    for number, line in enumerate(map(bytes.strip, lines), start=1):
        if number > LIST_LINES:
            raise ValueError(f"{flag} {path}: more than {LIST_LINES:,} lines")
        if len(line) > PATH_BYTES:
            raise ValueError(f"{flag} {path}:{number}: a line of {len(line):,} bytes; expected the path of a picture")
        try:
            text = line.decode().strip()
        except UnicodeDecodeError:
            raise _unreadable(path, flag, "not a text file") from None
        if "\0" in text:
            raise _unreadable(path, flag, "not a text file")
        if text:
            yield number, text


def _unreadable(path: str | Path, flag: str, reason: str | None) -> ValueError:
    return ValueError(f"{flag} {path}: cannot be read ({reason}); expected one picture path a line")
