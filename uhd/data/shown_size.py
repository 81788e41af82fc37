"""Sizes of pictures as they are shown, from the first bytes of their files: what the loader finds, without decoding."""

from __future__ import annotations

from typing import Literal

from uhd.data.headers import JPEG_START, picture_size
from uhd.data.images import read_image_and_size
from uhd.data.limits import DEFAULT_LIMITS
from uhd.reading import read_start

_START = 2**18
_EXIF = b"Exif\0\0"
_ORIENTATION = 0x0112
_ORIENTATION_MARKS = (b"eXIf", b"EXIF")


def shown_size(path: str) -> tuple[int, int]:
    """(height, width) of a picture with its EXIF orientation applied; ValueError names a file that is no picture.

    A file whose header is longer than 256 KB, or that has EXIF but is no JPEG, is decoded.
    """
    try:
        data = read_start(path, _START)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    size = picture_size(data)
    is_jpeg = data.startswith(JPEG_START)
    if size is None or (not is_jpeg and any(mark in data for mark in _ORIENTATION_MARKS)):
        return read_image_and_size(path, limits=DEFAULT_LIMITS)[1]
    return (size[1], size[0]) if is_jpeg and _orientation(data) in (5, 6, 7, 8) else size


def _orientation(data: bytes) -> int:
    """The EXIF orientation of a JPEG (CIPA DC-008, section 4.6); 1, upright, where it tells none."""
    position = len(JPEG_START)
    while data[position : position + 1] == b"\xff":
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        segment = data[position + 4 : position + 2 + length]
        if marker == 0xE1 and segment.startswith(_EXIF):
            return _orientation_in(segment[len(_EXIF) :])
        if marker == 0xDA or length < 2:
            break
        position += 2 + length
    return 1


def _orientation_in(tiff: bytes) -> int:
    if tiff[:2] not in (b"MM", b"II"):
        return 1
    order: Literal["big", "little"] = "big" if tiff[:2] == b"MM" else "little"

    def number(start: int, count: int) -> int:
        return int.from_bytes(tiff[start : start + count], order)

    directory = number(4, 4)
    for entry in range(number(directory, 2)):
        start = directory + 2 + 12 * entry
        if number(start, 2) == _ORIENTATION:
            return number(start + 8, 2)
    return 1
