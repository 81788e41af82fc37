"""Ops that move pixels and truths together, within one picture; and the op that takes truths away."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from uhd.augment.params import FILL, class_map, color, number, number_range, param, switch
from uhd.augment.pipeline import Op
from uhd.augment.sample import Image, Sample
from uhd.augment.turned import clip_turned
from uhd.augment.view import AREA_ROUNDING, Window, show, size_of, whole
from uhd.types import IGNORED

_LOG = logging.getLogger("uhd")


@dataclass(frozen=True)
class HorizontalFlip(Op):
    """Mirrors the picture left to right.

    class_swap_map: (original id, id of its mirror image) pairs for classes that have sides, applied
    as listed: a swap of two classes lists both directions. Ids as in --classes; the log names the classes.
    """

    class_swap_map: tuple[tuple[int, int], ...] = param((), class_map)
    mirrored_class: NDArray[np.int64] | None = field(default=None, compare=False)
    """Class index of the mirror image of each class index; None where no class has sides."""

    def bind(self, classes: Sequence[int]) -> HorizontalFlip:
        """Translates the swap map to class indices; a swap to a class that is not trained is left out, with a warning.

        A class that is not trained itself has no truths, so that its swap says nothing.
        """
        index = {original: i for i, original in enumerate(classes)}
        trained = [(a, b) for a, b in self.class_swap_map if a in index]
        untrained = {a: b for a, b in trained if b not in index}
        if untrained:
            _LOG.warning(
                "--aug-config: HorizontalFlip.class_swap_map swaps to classes that --classes does not train; "
                "these keep their class: %s",
                untrained,
            )
        if {a for a, _ in trained} != {b for _, b in trained} and not untrained:
            _LOG.warning(
                "--aug-config: HorizontalFlip.class_swap_map is no swap: %s; list both directions, {1: 2, 2: 1}",
                dict(self.class_swap_map),
            )
        swaps = [(index[a], index[b]) for a, b in trained if b in index]
        if not swaps:
            return self
        mirrored = np.arange(len(classes))
        mirrored[[a for a, _ in swaps]] = [b for _, b in swaps]
        return replace(self, mirrored_class=mirrored)

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The mirrored sample."""
        boxes = sample.boxes.copy()
        boxes[:, 0] = 1 - sample.boxes[:, 2]
        boxes[:, 2] = 1 - sample.boxes[:, 0]
        labels = sample.labels
        if self.mirrored_class is not None:
            kept = labels >= 0
            labels = labels.copy()
            labels[kept] = self.mirrored_class[labels[kept]]
        return Sample(cv2.flip(sample.image, 1), boxes, labels)


@dataclass(frozen=True)
class VerticalFlip(Op):
    """Mirrors the picture top to bottom."""

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The mirrored sample."""
        boxes = sample.boxes.copy()
        boxes[:, 1] = 1 - sample.boxes[:, 3]
        boxes[:, 3] = 1 - sample.boxes[:, 1]
        return Sample(cv2.flip(sample.image, 0), boxes, sample.labels)


@dataclass(frozen=True)
class GeometricOp(Op):
    """An op that may push truths out of the picture or enlarge them.

    min_visibility: a truth that keeps less than this share of its area is no longer learned.
    """

    needs_detail: ClassVar[bool] = True

    min_visibility: float = param(0.2, number(0, 1))


@dataclass(frozen=True)
class RandomScale(GeometricOp):
    """Zooms about the picture's centre.

    scale_range: factors of the size of what is shown, drawn evenly in their logarithm, so that half and double are
    equally likely; above 1 cuts off the borders, below 1 leaves places of the colour fill. keep_aspect_ratio: one
    factor for width and height, or one for each.
    """

    scale_range: tuple[float, float] = param((1.0, 1.0), number_range(0.05, 20))
    keep_aspect_ratio: bool = param(True, switch)
    fill: tuple[int, int, int] = param(FILL, color)

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The zoomed sample."""
        factors = log_uniform(rng, self.scale_range, 1 if self.keep_aspect_ratio else 2)
        height, width = sample.image.shape[:2]
        (x1, x2), (left, right) = _zoom(width, factors[0])
        (y1, y2), (top, bottom) = _zoom(height, factors[-1])
        return _moved(sample, Window(x1, y1, x2, y2), Window(left, top, right, bottom), self.fill, self.min_visibility)


@dataclass(frozen=True)
class Translation(GeometricOp):
    """Shifts the picture by whole pixels.

    translate: largest shift as a share of the width and of the height, either way. fill: colour of the places left.
    """

    translate: float = param(0.0, number(0, 1))
    fill: tuple[int, int, int] = param(FILL, color)

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The shifted sample."""
        height, width = sample.image.shape[:2]
        x, y = np.rint(rng.uniform(-self.translate, self.translate, 2) * (width, height)).astype(int).tolist()
        if abs(x) >= width or abs(y) >= height:
            return Sample(_filled(sample.image, self.fill), sample.boxes[:0], sample.labels[:0])
        source = Window(max(-x, 0), max(-y, 0), width - max(x, 0), height - max(y, 0))
        target = Window(max(x, 0), max(y, 0), width - max(-x, 0), height - max(-y, 0))
        return _moved(sample, source, target, self.fill, self.min_visibility)


@dataclass(frozen=True)
class Rotate(GeometricOp):
    """Turns the picture about its centre; a box becomes the one that encloses its turned corners.

    Of a box that the border cuts off it encloses what is left of the turned one.
    degrees: largest angle, either way. fill: colour of the places left.
    """

    degrees: float = param(0.0, number(0, 180))
    fill: tuple[int, int, int] = param(FILL, color)

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The turned sample."""
        angle = np.deg2rad(rng.uniform(-self.degrees, self.degrees))
        height, width = sample.image.shape[:2]
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        # OpenCV puts a pixel's centre at its whole number, boxes count from its edge.
        middle = np.array([width - 1, height - 1]) / 2
        matrix = np.column_stack([turn, middle - turn @ middle])
        image = cv2.warpAffine(sample.image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=self.fill)
        size = size_of(sample.image)
        corners = sample.boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].astype(np.float64).reshape(-1, 4, 2) * size[:2]
        turned = ((corners - size[:2] / 2) @ turn.T + size[:2] / 2) / size[:2]
        return Sample(image, *clip_turned(turned, sample.labels, self.min_visibility))


@dataclass(frozen=True)
class RandomCrop(GeometricOp):
    """Enlarges a window of fixed size, at a random place, to the whole picture.

    ratio: sides of the window as a share of the picture's.
    """

    min_visibility: float = param(0.25, number(0, 1))
    ratio: float = param(0.9, number(0.05, 1))

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The cropped sample."""
        height, width = sample.image.shape[:2]
        sides = max(1, round(self.ratio * width)), max(1, round(self.ratio * height))
        return _cropped(sample, sides, self.min_visibility, rng)


@dataclass(frozen=True)
class RandomResizedCrop(GeometricOp):
    """Stretches a window of random area and shape, at a random place, to the whole picture.

    scale: its area as a share of the picture's; ratio: its width by its height in pixels, drawn evenly in its
    logarithm, as torchvision's transform of this name draws it. A side longer than the picture's is cut to it.
    """

    min_visibility: float = param(0.25, number(0, 1))
    scale: tuple[float, float] = param((0.6, 1.0), number_range(0.0025, 1))
    ratio: tuple[float, float] = param((0.75, 1.33), number_range(0.05, 20))

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The cropped sample."""
        height, width = sample.image.shape[:2]
        area = width * height * rng.uniform(*self.scale)
        (ratio,) = log_uniform(rng, self.ratio, 1)
        across, down = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        sides = min(max(1, across), width), min(max(1, down), height)
        return _cropped(sample, sides, self.min_visibility, rng)


def log_uniform(rng: np.random.Generator, limits: tuple[float, float], count: int) -> NDArray[np.float64]:
    """Factors [count] within the limits, drawn evenly in their logarithm."""
    low, high = (math.log(limit) for limit in limits)
    factors: NDArray[np.float64] = np.exp(rng.uniform(low, high, count))
    return factors


def _zoom(length: int, factor: float) -> tuple[tuple[int, int], tuple[int, int]]:
    """What a zoom shows of one side of a picture, and where: (start, end) in the source and in the result."""
    if factor > 1:
        shown = max(1, round(length / factor))
        start = (length - shown) // 2
        return (start, start + shown), (0, length)
    covered = max(1, round(length * factor))
    start = (length - covered) // 2
    return (0, length), (start, start + covered)


def _filled(image: Image, fill: tuple[int, int, int]) -> Image:
    # One level for all channels, the rule, is written ten times as fast as three.
    return np.full(image.shape, fill[0] if len(set(fill)) == 1 else fill, np.uint8)


def _moved(sample: Sample, source: Window, target: Window, fill: tuple[int, int, int], min_visibility: float) -> Sample:
    """The source window of the sample in the target window of a picture of that colour."""
    covered = target == whole(sample.image)
    canvas = np.empty(sample.image.shape, np.uint8) if covered else _filled(sample.image, fill)
    return Sample(canvas, *show(sample, source, canvas, target, min_visibility))


def _cropped(sample: Sample, sides: tuple[int, int], min_visibility: float, rng: np.random.Generator) -> Sample:
    """A window of sides (width, height) pixels at a random place, as the whole picture."""
    height, width = sample.image.shape[:2]
    x, y = int(rng.integers(width - sides[0] + 1)), int(rng.integers(height - sides[1] + 1))
    canvas = np.empty(sample.image.shape, np.uint8)
    window = Window(x, y, x + sides[0], y + sides[1])
    return Sample(canvas, *show(sample, window, canvas, whole(canvas), min_visibility))


@dataclass(frozen=True)
class RemoveOutliers(Op):
    """Takes away the truths that are too small to be seen.

    min_area: smallest area that stays, as a share of the picture. A smaller truth becomes IGNORED
    instead of vanishing: its place shows a person, who must not be taught as background.
    """

    bare: ClassVar[str] = "min_area"

    prob: float = param(1.0, number(0, 1))
    min_area: float = param(0.0, number(0, 1))

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The sample, its small truths labelled IGNORED."""
        width, height = (sample.boxes[:, 2:] - sample.boxes[:, :2]).T
        small = width * height < self.min_area * (1 - AREA_ROUNDING)
        return Sample(sample.image, sample.boxes, np.where(small, IGNORED, sample.labels))
