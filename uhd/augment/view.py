"""Showing a rectangle of one picture in a rectangle of another, its truths with it: what all zooms and pastes do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from uhd.augment.sample import Image, Sample
from uhd.types import IGNORED

Truths = tuple[NDArray[np.float32], NDArray[np.int64]]
"""boxes [g,4] xyxy 0..1 and labels [g], as in a `Sample`."""

# Corners are float32: a box of exactly the minimum may measure this share less.
AREA_ROUNDING = 1e-5
# Nor does a box that ends where the view begins leave this share of a side.
SLIVER = 1e-6


class Window(NamedTuple):
    """A rectangle of whole pixels: x1 <= x < x2, y1 <= y < y2."""

    x1: int
    y1: int
    x2: int
    y2: int

    @property
    def width(self) -> int:
        """Pixels across."""
        return self.x2 - self.x1

    @property
    def height(self) -> int:
        """Pixels down."""
        return self.y2 - self.y1


def whole(image: Image) -> Window:
    """All of an image [H,W,3]."""
    return Window(0, 0, image.shape[1], image.shape[0])


class Shown(NamedTuple):
    """A sample of which the source window is shown in the target window of a canvas."""

    sample: Sample
    source: Window
    target: Window


def show(sample: Sample, source: Window, canvas: Image, target: Window, min_visibility: float) -> Truths:
    """Draws the source window of a sample's picture into the target window of the canvas, stretched to it.

    Returns the sample's truths as they lie on the canvas, clipped to the target window. A truth that keeps less than
    min_visibility of its area becomes IGNORED, one of which nothing is left goes. Neither window may be empty.
    """
    draw(sample.image, source, canvas, target)
    if not len(sample.boxes):
        return sample.boxes, sample.labels
    return shown_truths([Shown(sample, source, target)], canvas, min_visibility)[0]


def draw(image: Image, source: Window, canvas: Image, target: Window) -> None:
    """Draws the source window of an image into the target window of the canvas, stretched to it."""
    part = image[source.y1 : source.y2, source.x1 : source.x2]
    place = canvas[target.y1 : target.y2, target.x1 : target.x2]
    if part.shape[:2] != (target.height, target.width):
        # Down to half the size bilinear reads every pixel, in a fifth of the time of averaging areas.
        shrinks = source.width > 2 * target.width or source.height > 2 * target.height
        interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        cv2.resize(part, (target.width, target.height), dst=place, interpolation=interpolation)
    else:
        place[:] = part


def shown_truths(shown: Sequence[Shown], canvas: Image, min_visibility: float) -> tuple[Truths, NDArray[np.intp]]:
    """What `show` returns, of several samples on one canvas, at least one; and the sample of each truth [g].

    All at once: most samples have few truths, so that a step for each of them takes longer than its arithmetic.
    """
    owners = np.repeat(np.arange(len(shown)), [len(each.sample.labels) for each in shown])
    rows = np.array([_placement(each, canvas) for each in shown]).take(owners, axis=0)
    boxes = np.concatenate([each.sample.boxes for each in shown]) * rows[:, :4] + rows[:, 4:8]
    labels = np.concatenate([each.sample.labels for each in shown])
    clipped = np.minimum(np.maximum(boxes, rows[:, 8:12]), rows[:, 12:])
    kept, full = (each[:, 2:] - each[:, :2] for each in (clipped, boxes))
    labels, left = visible(clipped, kept[:, 0] * kept[:, 1], full[:, 0] * full[:, 1], labels, min_visibility)
    return (clipped.take(left, axis=0).astype(np.float32), labels), owners.take(left)


def _placement(shown: Shown, canvas: Image) -> tuple[float, ...]:
    """What `draw` does to a sample's boxes, each of four numbers as shares of the canvas.

    They are what it multiplies them by, what it moves them by, and the lowest and the highest corners they may have.
    """
    image, source, target = shown.sample.image, shown.source, shown.target
    height, width = canvas.shape[:2]
    across, down = target.width / source.width, target.height / source.height
    factors = (image.shape[1] * across / width, image.shape[0] * down / height)
    shifts = ((target.x1 - source.x1 * across) / width, (target.y1 - source.y1 * down) / height)
    low, high = (target.x1 / width, target.y1 / height), (target.x2 / width, target.y2 / height)
    return (*factors, *factors, *shifts, *shifts, *low, *low, *high, *high)


def size_of(image: NDArray[Any]) -> NDArray[np.float64]:
    """(width, height, width, height) of an image [H,W,...]: what corners 0..1 are multiplied by to be in pixels."""
    height, width = image.shape[:2]
    return np.array([width, height, width, height], np.float64)


def visible(
    boxes: NDArray[np.float64],
    kept: NDArray[np.float64],
    full: NDArray[np.float64],
    labels: NDArray[np.int64],
    min_visibility: float,
) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
    """Truths by what is seen of them: boxes [g,4], and their areas [g], beside the full ones.

    Returns the labels of those that are left, IGNORED for one that keeps less than min_visibility of its area, and
    their indices.
    """
    hidden = kept < full * (min_visibility * (1 - AREA_ROUNDING))
    sides = boxes[:, 2:] - boxes[:, :2]
    left = ((sides[:, 0] > SLIVER) & (sides[:, 1] > SLIVER)).nonzero()[0]
    return np.where(hidden, IGNORED, labels).take(left), left


def join(truths: list[Truths]) -> Truths:
    """The truths of several pictures as those of one."""
    return np.concatenate([boxes for boxes, _ in truths]), np.concatenate([labels for _, labels in truths])
