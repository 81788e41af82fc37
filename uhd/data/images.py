"""Decoding pictures to RGB uint8; needs no torch."""

from __future__ import annotations

import errno
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from uhd.data.headers import JPEG_START, PNG_START, jpeg_size, picture_size
from uhd.data.limits import DEFAULT_LIMITS, Limits
from uhd.reading import read_plain

__all__ = ["REDUCED_MARGIN", "decode_image", "jpeg_size", "read_image", "read_image_and_size", "read_rgba"]

_JPEG_END = b"\xff\xd9"
_JPEG_SCAN = b"\xff\xda"
_REDUCED_FLAGS = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}
# Reduced by 2, 4 or 8 to at least twice the target, photographs of 300x260 to 1920x1080 pixels differ after the resize
# by 1.0 grey level in the mean and 1.9 at worst from those decoded in full; at 1.9 times it is 1.2 and 2.3.
REDUCED_MARGIN = 2.0


def read_image(
    path: str | Path, at_least: tuple[int, int] | None = None, limits: Limits = DEFAULT_LIMITS
) -> NDArray[np.uint8]:
    """The picture as RGB uint8 [h,w,3]; arguments and errors of `read_image_and_size`."""
    return read_image_and_size(path, at_least, limits)[0]


def read_image_and_size(
    path: str | Path, at_least: tuple[int, int] | None = None, limits: Limits = DEFAULT_LIMITS
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Decodes a JPEG, PNG, BMP or WebP: RGB uint8 [h,w,3], and its own (height, width) in pixels.

    The EXIF orientation is applied; grey, alpha, CMYK and 16 bits become 8-bit RGB (alpha is dropped); of several
    pictures the first counts. at_least: (height, width) that the picture will be reduced to by area averaging; a JPEG
    is then decoded at 1/2, 1/4 or 1/8 of its size, as far as REDUCED_MARGIN times at_least remains. Raises ValueError
    that names the file where it cannot be read, is no such picture, ends early, or has more than limits.max_pixels by
    its header, before it is decoded.
    """
    return decode_image(_read_bytes(path, limits), str(path), at_least, limits)


def read_rgba(path: str | Path, limits: Limits = DEFAULT_LIMITS) -> NDArray[np.uint8]:
    """Decodes a picture with its alpha: RGBA uint8 [h,w,4], not multiplied; without any, alpha is 255 everywhere.

    Grey, palettes and 16 bits become 8-bit RGBA. No EXIF orientation is applied. Raises ValueError as
    `read_image_and_size` does.
    """
    data = _read_bytes(path, limits)
    _check_header(data, str(path), limits)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        image = None
    if image is None:
        raise ValueError(f"{path}: not a picture that can be decoded")
    if image.dtype == np.uint16:
        image = np.rint(image / 257).astype(np.uint8)
    if image.ndim == 2 or image.shape[2] == 1:
        rgba: NDArray[np.uint8] = cv2.cvtColor(image, cv2.COLOR_GRAY2RGBA)
        return rgba
    rgba = cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA if image.shape[2] == 4 else cv2.COLOR_BGR2RGBA)
    return rgba


def _read_bytes(path: str | Path, limits: Limits) -> bytes:
    """The file's content; ValueError that names it where it cannot be had."""
    try:
        return read_plain(path, limits.picture_bytes)
    except OSError as error:
        hint = f" for --max-pixels {limits.max_pixels}" if error.errno == errno.EFBIG else ""
        raise ValueError(f"{path}: cannot be read ({error.strerror}{hint})") from None


def decode_image(
    data: bytes, name: str, at_least: tuple[int, int] | None = None, limits: Limits = DEFAULT_LIMITS
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """`read_image_and_size` of a file's content; name stands in errors."""
    size = _check_header(data, name, limits)
    reduced = _decode_reduced(data, size, at_least) if at_least and data.startswith(JPEG_START) else None
    if reduced is not None:
        return reduced
    image = _decode(data, cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{name}: not a picture that can be decoded")
    return image, (image.shape[0], image.shape[1])


def _check_header(data: bytes, name: str, limits: Limits) -> tuple[int, int]:
    """(height, width) by the header; ValueError for what is no whole picture, or too large a one."""
    if _is_truncated(data):
        raise ValueError(f"{name}: the file ends before the picture does")
    size = picture_size(data)
    if size is None:
        raise ValueError(f"{name}: not a picture that can be decoded; expected JPEG, PNG, BMP or WebP")
    if size[0] * size[1] > limits.max_pixels:
        raise ValueError(f"{name}: {size[0]}x{size[1]} pixels; expected at most --max-pixels {limits.max_pixels}")
    return size


def _decode(data: bytes, flags: int) -> NDArray[np.uint8] | None:
    try:
        image: NDArray[np.uint8] | None = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None
    return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _decode_reduced(
    data: bytes, size: tuple[int, int], at_least: tuple[int, int]
) -> tuple[NDArray[np.uint8], tuple[int, int]] | None:
    """A JPEG of this size in its header at the smallest fraction that will do; None where only the full size does."""
    # The orientation is known only after decoding, so the shorter side has to do for the longer target.
    factor = next((f for f in _REDUCED_FLAGS if min(size) >= REDUCED_MARGIN * max(at_least) * f), None)
    if factor is None:
        return None
    upright = tuple(-(-side // factor) for side in size)
    turned = upright[::-1]
    if upright == turned and size[0] != size[1]:
        return None
    image = _decode(data, _REDUCED_FLAGS[factor])
    if image is None or image.shape[:2] not in (upright, turned):
        return None
    return image, size if image.shape[:2] == upright else (size[1], size[0])


def _is_truncated(data: bytes) -> bool:
    """Whether a JPEG or PNG lacks its end mark: decoders fill the missing part with grey and report success."""
    if data.startswith(JPEG_START):
        return data.rfind(_JPEG_END) < data.rfind(_JPEG_SCAN)
    return data.startswith(PNG_START) and b"IEND" not in data[-4096:]
