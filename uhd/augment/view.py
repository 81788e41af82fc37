"""Showing a rectangle of one picture in a rectangle of another, its truths with it: what all zooms and pastes do."""

from __future__ import annotations

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


def show(sample: Sample, source: Window, canvas: Image, target: Window, min_visibility: float) -> Truths:
    """Draws the source window of a sample's picture into the target window of the canvas, stretched to it.

    Returns the sample's truths as they lie on the canvas, clipped to the target window. A truth that keeps less than
    min_visibility of its area becomes IGNORED, one of which nothing is left goes. Neither window may be empty.
    """
    draw(sample.image, source, canvas, target)
    if not len(sample.boxes):
        return sample.boxes, sample.labels
    return clip_truths(placed(sample, source, canvas, target), sample.labels, shares_of(target, canvas), min_visibility)


def draw(image: Image, source: Window, canvas: Image, target: Window) -> None:
    """Draws the source window of an image into the target window of the canvas, stretched to it."""
    part = image[source.y1 : source.y2, source.x1 : source.x2]
    if part.shape[:2] != (target.height, target.width):
        # Down to half the size bilinear reads every pixel, in a fifth of the time of averaging areas.
        shrinks = source.width > 2 * target.width or source.height > 2 * target.height
        interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        part = cv2.resize(part, (target.width, target.height), interpolation=interpolation)
    canvas[target.y1 : target.y2, target.x1 : target.x2] = part


def placed(sample: Sample, source: Window, canvas: Image, target: Window) -> NDArray[np.float64]:
    """The sample's boxes [g,4] where `draw` puts what they hold, as shares of the canvas; not clipped."""
    height, width = canvas.shape[:2]
    across, down = target.width / source.width, target.height / source.height
    factors = (sample.image.shape[1] * across / width, sample.image.shape[0] * down / height)
    shifts = ((target.x1 - source.x1 * across) / width, (target.y1 - source.y1 * down) / height)
    boxes: NDArray[np.float64] = sample.boxes * np.array(factors * 2) + np.array(shifts * 2)
    return boxes


def shares_of(window: Window, image: Image) -> NDArray[np.float64]:
    """A window's corners [4] as shares of an image."""
    height, width = image.shape[:2]
    return np.array([window.x1 / width, window.y1 / height, window.x2 / width, window.y2 / height])


def size_of(image: NDArray[Any]) -> NDArray[np.float64]:
    """(width, height, width, height) of an image [H,W,...]: what corners 0..1 are multiplied by to be in pixels."""
    height, width = image.shape[:2]
    return np.array([width, height, width, height], np.float64)


def clip_truths(
    boxes: NDArray[np.float64], labels: NDArray[np.int64], limits: NDArray[np.float64], min_visibility: float
) -> Truths:
    """Truths with their corners [g,4] clipped to limits, [4] or one row a truth.

    One that keeps less than min_visibility of its area becomes IGNORED; one of which nothing is left goes.
    """
    corners = np.empty_like(boxes)
    np.minimum(np.maximum(boxes[:, :2], limits[..., :2]), limits[..., 2:], out=corners[:, :2])
    np.minimum(np.maximum(boxes[:, 2:], limits[..., :2]), limits[..., 2:], out=corners[:, 2:])
    kept, full = (each[:, 2:] - each[:, :2] for each in (corners, boxes))
    return seen_truths(corners, kept[:, 0] * kept[:, 1], full[:, 0] * full[:, 1], labels, min_visibility)


def seen_truths(
    boxes: NDArray[np.float64],
    kept: NDArray[np.float64],
    full: NDArray[np.float64],
    labels: NDArray[np.int64],
    min_visibility: float,
) -> Truths:
    """Truths by what is seen of them: boxes [g,4], and their areas [g], beside the full ones."""
    hidden = kept < full * (min_visibility * (1 - AREA_ROUNDING))
    left = (boxes[:, 2:] - boxes[:, :2] > SLIVER).all(axis=1)
    return boxes[left].astype(np.float32), np.where(hidden, IGNORED, labels)[left]


def join(truths: list[Truths]) -> Truths:
    """The truths of several pictures as those of one."""
    return np.concatenate([boxes for boxes, _ in truths]), np.concatenate([labels for _, labels in truths])
