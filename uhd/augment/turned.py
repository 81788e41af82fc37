"""Rectangles that were turned: what a picture still shows of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from uhd.augment.view import SLIVER, Truths, visible

Edges = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]
"""Starts and ends [g,4,2] of the sides of quadrangles, and which of them there are [g,4]."""
_LEVEL = 1e-12


def clip_turned(corners: NDArray[np.float64], labels: NDArray[np.int64], min_visibility: float) -> Truths:
    """The truths of turned rectangles, clipped to the whole picture as `view.show` does: corners [g,4,2] (x, y) 0..1.

    The corners go round. A box encloses what is seen of its rectangle, and the share that decides is the rectangle's
    own: the box around all of it, clipped, would be too large where a corner of it lies outside, and count what the
    object does not cover.
    """
    lowest, highest = corners.min(axis=1), corners.max(axis=1)
    if (lowest >= 0).all() and (highest <= 1).all():
        # Most pictures: what the others need takes several times as long.
        boxes, kept = np.concatenate([lowest, highest], axis=1), np.ones(len(corners))
        full = kept
    else:
        boxes, kept, full = _clipped(corners)
    labels, left = visible(boxes, kept, full, labels, min_visibility)
    return boxes[left].astype(np.float32), labels


def _clipped(corners: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The boxes [g,4] around what is seen of turned rectangles, its area [g], and that of all of them [g]."""
    starts, ends = corners, np.roll(corners, -1, axis=1)
    inside = [_between_0_and_1(starts, ends, axis) for axis in (0, 1)]
    # What of the outline lies between top and bottom spans from left to right, and the other way round.
    spans = [_span(*inside[1 - axis], axis) for axis in (0, 1)]
    boxes = np.column_stack([spans[0][0], spans[1][0], spans[0][1], spans[1][1]])
    full = np.abs((starts[..., 0] * ends[..., 1] - ends[..., 0] * starts[..., 1]).sum(axis=1)) / 2
    return boxes, _area_seen(*inside[1]), full


def _between_0_and_1(starts: NDArray[np.float64], ends: NDArray[np.float64], axis: int) -> Edges:
    """The parts of sides on which this coordinate is from 0 to 1."""
    along = ends - starts
    start, step = starts[..., axis], along[..., axis]
    # A level side meets the limits far away: before its start and behind its end, or both on one side.
    step = np.where(np.abs(step) < _LEVEL, _LEVEL, step)
    at_0, at_1 = -start / step, (1 - start) / step
    first, last = np.maximum(np.minimum(at_0, at_1), 0), np.minimum(np.maximum(at_0, at_1), 1)
    return starts + first[..., None] * along, starts + last[..., None] * along, first < last


def _span(
    starts: NDArray[np.float64], ends: NDArray[np.float64], there: NDArray[np.bool_], axis: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The lowest and highest of a coordinate on these sides [g], clipped to 0..1; 1 and 0 where there are none."""
    start, end = starts[..., axis], ends[..., axis]
    low = np.where(there, np.minimum(start, end), 1).min(axis=1)
    high = np.where(there, np.maximum(start, end), 0).max(axis=1)
    return np.maximum(np.minimum(low, 1), 0), np.maximum(np.minimum(high, 1), 0)


def _area_seen(starts: NDArray[np.float64], ends: NDArray[np.float64], there: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Area [g] inside the picture of quadrangles whose sides are clipped to it above and below.

    By Green's theorem: at each height a convex outline has as much inside as its two sides, each moved to the nearest
    place inside, are apart. On a side the mean of what is moved so is a difference of integrals.
    """
    x, other = starts[..., 0], ends[..., 0]
    across = other - x
    is_upright = np.abs(across) < SLIVER
    mean = np.where(
        is_upright,
        np.minimum(np.maximum(x, 0), 1),
        (_integral(other) - _integral(x)) / np.where(is_upright, 1.0, across),
    )
    area: NDArray[np.float64] = np.abs(np.where(there, mean * (ends[..., 1] - starts[..., 1]), 0.0).sum(axis=1))
    return area


def _integral(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the nearest number in 0..1, from 0 to x."""
    inside = np.minimum(np.maximum(x, 0), 1)
    area: NDArray[np.float64] = inside * inside / 2 + np.maximum(x - 1, 0)
    return area
