"""Sizes of pictures from the first bytes of their files, read as the decoders read them but without decoding.

JPEG (ITU-T T.81, annex B), PNG (W3C), BMP (Microsoft's DIB headers) and WebP (RFC 9649). Files of other formats, whose
size is not known before they are decoded, are no pictures to this program, whatever their names end in.
"""

from __future__ import annotations

import re

JPEG_START = b"\xff\xd8"
PNG_START = b"\x89PNG\r\n\x1a\n"

_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff]", re.DOTALL)
_JPEG_SIZE = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD8)})
_JPEG_ENDS = frozenset({0xD8, 0xD9, 0xDA})
_MOST_SEGMENTS = 100_000
"""Profiles and descriptions fill a few hundred at most; the loop over them is to be short."""

Size = tuple[int, int]


def picture_size(data: bytes) -> Size | None:
    """(height, width) in pixels, before any EXIF orientation; None where it is no JPEG, PNG, BMP or WebP."""
    if data.startswith(JPEG_START):
        return jpeg_size(data)
    if data.startswith(PNG_START):
        found = _big(data, 20), _big(data, 16)
    elif data.startswith(b"BM"):
        found = _bmp_size(data)
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        found = _webp_size(data)
    else:
        return None
    return found if all(found) else None


def jpeg_size(data: bytes) -> Size | None:
    """(height, width) from a JPEG's header, before the EXIF orientation; None where there is no such header.

    Segments are found as libjpeg finds them: bytes between them that belong to none are passed over.
    """
    position = len(JPEG_START)
    for _ in range(_MOST_SEGMENTS):
        # Nearly always the next segment begins where the last one ends.
        if data[position : position + 1] != b"\xff" or data[position + 1 : position + 2] in (b"\xff", b"\0"):
            found = _JPEG_MARKER.search(data, position)
            position = found.start() if found else len(data)
        if position + 9 > len(data):
            return None
        marker = data[position + 1]
        position += 2
        if marker in _JPEG_SIZE:
            height, width = data[position + 3] << 8 | data[position + 4], data[position + 5] << 8 | data[position + 6]
            return (height, width) if height and width else None
        if marker in _JPEG_ENDS:
            return None
        if marker not in _JPEG_BARE:
            position += max(2, data[position] << 8 | data[position + 1])
    return None


def _bmp_size(data: bytes) -> Size:
    """A negative height, which says that the rows stand from top to bottom, counts as a positive one."""
    if _little(data, 14) == 12:  # the oldest header, of OS/2
        return _little(data, 20, 2), _little(data, 18, 2)
    height = int.from_bytes(data[22:26], "little", signed=True)
    return abs(height), _little(data, 18)


def _webp_size(data: bytes) -> Size:
    """Of the canvas where there is one: it holds every frame."""
    kind = data[12:16]
    if kind == b"VP8X":
        return _little(data, 27, 3) + 1, _little(data, 24, 3) + 1
    if kind == b"VP8L":
        bits = _little(data, 21)
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if kind == b"VP8 ":
        return _little(data, 28, 2) & 0x3FFF, _little(data, 26, 2) & 0x3FFF
    return 0, 0


def _big(data: bytes, start: int, count: int = 4) -> int:
    return int.from_bytes(data[start : start + count], "big")


def _little(data: bytes, start: int, count: int = 4) -> int:
    return int.from_bytes(data[start : start + count], "little")
