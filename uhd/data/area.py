"""OpenCV's area averaging, to the bit and several times as fast for the sizes of cameras.

`cv2.resize` with INTER_AREA adds up weighted pixels one by one. Where the two sizes share a large divisor, as 480 and
64 do, the picture falls into equal blocks, and the sums are small matrix products of whole numbers: exact, so that only
what lies next to a rounding boundary depends on the order in which OpenCV adds. Those pixels are computed as it does.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_MAX_BLOCK = 256
"""Longest side of a block; the products of longer ones take as long as OpenCV."""
_EXACT = 2**24
"""Whole numbers up to this are exact in float32."""
_WORTH_IT = 200_000
"""Values of a picture from which this way is the faster one."""
_CHUNK = 60_000
"""Values that are averaged at once: what follows finds less of the cache taken than after the whole picture."""
_DOUBT = 1e-3
"""Grey levels around a rounding boundary within which OpenCV's own rounding errors may decide."""


class _Axis(NamedTuple):
    """One direction: `block` source pixels become `cells` target pixels, again and again.

    weights [cells,block] whole numbers that sum to `block` in each row; by_channel [block*3,cells*3] the same for
    pixels of three channels side by side. OpenCV's own: pixels [target,n] the source pixels of each target pixel,
    shares [target,n] their weights, 0 beyond the last.
    """

    block: int
    cells: int
    weights: NDArray[np.float32]
    by_channel: NDArray[np.float32]
    pixels: NDArray[np.int64]
    shares: NDArray[np.float32]


def shrink(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8] | None:
    """[h,w,3] averaged to size (height, width), equal to OpenCV's INTER_AREA; None where that is as fast.

    The equality holds where OpenCV was compiled without fused multiply-adds, as its packages for x86 are; elsewhere a
    pixel next to a rounding boundary may be one grey level off.
    """
    source = image.shape[:2]
    if image.size < _WORTH_IT or source[0] < 2 * size[0] or source[1] < 2 * size[1]:
        return None
    if not (source[0] % size[0] or source[1] % size[1]):
        return None  # OpenCV has a fast way of its own for whole factors
    down, across = _axis(source[0], size[0]), _axis(source[1], size[1])
    total = down.block * across.block if down and across else _EXACT
    if down is None or across is None or 255 * total > _EXACT:
        return None
    height, width = size
    # Rows first, which leaves the least for the columns; a few blocks at a time, so that they stay in the cache.
    blocks = image.reshape(-1, down.block, source[1] * 3)
    step = max(1, _CHUNK // blocks[0].size)
    rows = np.empty((len(blocks), down.cells, source[1] * 3), dtype=np.float32)
    for start in range(0, len(blocks), step):
        part = slice(start, start + step)
        np.matmul(down.weights, blocks[part].astype(np.float32), out=rows[part])
    sums = np.matmul(rows.reshape(-1, across.block * 3), across.by_channel).reshape(height, width, 3)
    means = sums / np.float32(total)
    rounded = np.rint(means)
    doubtful = np.flatnonzero(np.abs(np.abs(means - rounded) - np.float32(0.5)) < _DOUBT)
    if len(doubtful):
        rounded.put(doubtful, _as_opencv(image, down, across, doubtful))
    averaged: NDArray[np.uint8] = rounded.astype(np.uint8)
    return averaged


@functools.lru_cache(maxsize=64)
def _axis(source: int, target: int) -> _Axis | None:
    """The blocks of one direction; None where they are too long."""
    shared = math.gcd(source, target)
    block, cells = source // shared, target // shared
    if block > _MAX_BLOCK:
        return None
    # In units of 1/cells of a source pixel, so that all borders are whole numbers.
    ends = np.minimum.outer((np.arange(cells) + 1) * block, (np.arange(block) + 1) * cells)
    starts = np.maximum.outer(np.arange(cells) * block, np.arange(block) * cells)
    weights = np.maximum(ends - starts, 0).astype(np.float32)
    by_channel = np.kron(weights.T, np.eye(3, dtype=np.float32))
    return _Axis(block, cells, weights, by_channel, *_opencv_table(source, target))


def _opencv_table(source: int, target: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The source pixels of each target pixel, and their weights as OpenCV's computeResizeAreaTab has them."""
    scale = source / target
    rows: list[list[tuple[int, float]]] = []
    for index in range(target):
        start, end = index * scale, index * scale + scale
        width = min(scale, source - start)
        first, last = math.ceil(start), min(math.floor(end), source - 1)
        first = min(first, last)
        row = [(first - 1, (first - start) / width)] if first - start > 1e-3 else []
        row += [(pixel, 1.0 / width) for pixel in range(first, last)]
        if end - last > 1e-3:
            row.append((last, min(min(end - last, 1.0), width) / width))
        rows.append(row)
    left = np.array([row[0][0] for row in rows])
    shares = np.zeros((target, max(map(len, rows))), dtype=np.float32)
    for values, row in zip(shares, rows, strict=True):
        values[: len(row)] = [share for _, share in row]
    # Beyond the last weight stands 0; any pixel will do there.
    return np.minimum(left[:, None] + np.arange(shares.shape[1]), source - 1), shares


def _as_opencv(image: NDArray[np.uint8], down: _Axis, across: _Axis, places: NDArray[np.int64]) -> NDArray[np.float32]:
    """Values of the result at flat places, in OpenCV's order of float32 sums: along each row, then down the rows."""
    pixel = places // 3
    channel = places - pixel * 3
    row = pixel // len(across.shares)
    column = pixel - row * len(across.shares)
    # [n across, P, n down]: what is added lies side by side.
    inside = (across.pixels[column] * 3 + channel[:, None]).T
    values = image.reshape(-1).take(inside[:, :, None] + down.pixels[row] * (image.shape[1] * 3))
    products = values * across.shares[column].T[:, :, None]
    sums = _add_in_order(products) * down.shares[row]
    rounded: NDArray[np.float32] = np.rint(_add_in_order(sums.T))
    return rounded


def _add_in_order(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The sum over the first axis, one by one: numpy's own sums pair their terms."""
    total: NDArray[np.float32] = values[0].copy()
    for row in values[1:]:
        total += row
    return total
