"""Ops that show several pictures of the training set in one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from uhd.augment import view
from uhd.augment.geometric import log_uniform
from uhd.augment.params import number, number_range, param, whole_number
from uhd.augment.pipeline import Draw, MultiImageOp
from uhd.augment.sample import Image, Sample
from uhd.augment.view import Shown, Truths, Window, join, size_of
from uhd.types import IGNORED

# Two half-transparent pictures, never one that hardly shows: the shape that YOLOX and its successors use.
_MIXUP_BETA = 32.0

_LEAST_PASTED_SIDE = 3
"""Pixels of the working size: of a smaller object nothing can be made out, pasted or not."""


@dataclass(frozen=True)
class Mosaic(MultiImageOp):
    """Parts of four pictures around a random point, as in YOLOv4 (Bochkovskiy et al., arXiv:2004.10934, section 3.3).

    The sample itself is one of the four. Each part is cut at a random place.
    scale_range: size at which a picture is shown, 1 being its own; where that leaves a quarter uncovered, the picture
    is stretched to it. min_visibility: a truth that keeps less than this share of its area is no longer learned.
    """

    needs_detail: ClassVar[bool] = True

    min_visibility: float = param(0.2, number(0, 1))
    scale_range: tuple[float, float] = param((0.5, 1.0), number_range(0.05, 20))

    def combine(self, sample: Sample, rng: np.random.Generator, draw: Draw) -> Sample:
        """The sample in one quarter, drawn ones in the others."""
        height, width = sample.image.shape[:2]
        x, y = (round(side * rng.triangular(0.2, 0.5, 0.8)) for side in (width, height))
        quarters = [Window(0, 0, x, y), Window(x, 0, width, y), Window(0, y, x, height), Window(x, y, width, height)]
        own = int(rng.integers(4))
        scales = log_uniform(rng, self.scale_range, 4).tolist()
        canvas = np.empty_like(sample.image)
        parts = []
        for i, quarter in enumerate(quarters):
            piece = sample if i == own else draw()
            if not (quarter.width and quarter.height):
                continue
            source = _part(piece.image, quarter, scales[i], rng)
            view.draw(piece.image, source, canvas, quarter)
            parts.append(Shown(piece, source, quarter))
        return Sample(canvas, *view.shown_truths(parts, canvas, self.min_visibility)[0])


@dataclass(frozen=True)
class MixUp(MultiImageOp):
    """Two pictures laid over each other, with the truths of both (Zhang et al., arXiv:1710.09412).

    The share of each is about a half: drawn from a beta distribution of 32 and 32, as detectors use it.
    """

    def combine(self, sample: Sample, rng: np.random.Generator, draw: Draw) -> Sample:
        """The sample mixed with a drawn one."""
        other = draw()
        share = rng.beta(_MIXUP_BETA, _MIXUP_BETA)
        image = cv2.addWeighted(sample.image, share, other.image, 1 - share, 0)
        return Sample(image, *join([(sample.boxes, sample.labels), (other.boxes, other.labels)]))


@dataclass(frozen=True)
class CopyPaste(MultiImageOp):
    """Objects of other pictures, cut out by their boxes and pasted at random places.

    sample_num: pictures to take from. max_paste_objects: most objects from each. scale_jitter: factors of their size.
    min_visibility: a truth of which a pasted object leaves less is no longer learned; of one that is covered from a
    side the box shrinks to what is left.
    """

    needs_detail: ClassVar[bool] = True

    prob: float = param(0.3, number(0, 1))
    min_visibility: float = param(0.2, number(0, 1))
    sample_num: int = param(1, whole_number(0, 16))
    max_paste_objects: int = param(5, whole_number(0, 100))
    scale_jitter: tuple[float, float] = param((0.8, 1.2), number_range(0.05, 20))

    def combine(self, sample: Sample, rng: np.random.Generator, draw: Draw) -> Sample:
        """The sample with drawn objects on it."""
        canvas = sample.image.copy()
        pasted: list[Shown] = []
        for _ in range(self.sample_num):
            source = draw()
            for window in self._objects(source, rng):
                target = self._place(window, canvas, rng)
                view.draw(source.image, window, canvas, target)
                pasted.append(Shown(source, window, target))
        if not pasted:
            return sample
        top = np.zeros(canvas.shape[:2], np.int16)
        for layer, each in enumerate(pasted, start=1):
            top[each.target.y1 : each.target.y2, each.target.x1 : each.target.x2] = layer
        truths, owners = view.shown_truths(pasted, canvas, self.min_visibility)
        layers = [0] * len(sample.labels) + [owner + 1 for owner in owners.tolist()]
        every = join([(sample.boxes, sample.labels), truths])
        return Sample(canvas, *uncovered(every, layers, top, self.min_visibility))

    def _objects(self, sample: Sample, rng: np.random.Generator) -> list[Window]:
        """Windows of some of the sample's truths, in random order."""
        edges = sample.boxes * size_of(sample.image)
        sides = edges[:, 2:] - edges[:, :2]
        large = (sides[:, 0] >= _LEAST_PASTED_SIDE) & (sides[:, 1] >= _LEAST_PASTED_SIDE)
        chosen = rng.permutation((large & (sample.labels != IGNORED)).nonzero()[0])[: self.max_paste_objects]
        return [Window(*corners) for corners in _whole_pixels(edges[chosen]).tolist()]

    def _place(self, window: Window, canvas: Image, rng: np.random.Generator) -> Window:
        """A random place of the jittered size, wholly inside the canvas."""
        height, width = canvas.shape[:2]
        factor = min(rng.uniform(*self.scale_jitter), width / window.width, height / window.height)
        across, down = max(1, round(window.width * factor)), max(1, round(window.height * factor))
        x, y = int(rng.integers(width - across + 1)), int(rng.integers(height - down + 1))
        return Window(x, y, x + across, y + down)


def uncovered(truths: Truths, layers: Sequence[int], top: NDArray[np.int16], min_visibility: float) -> Truths:
    """What is left of truths below others: each is in one of the layers [g], of which top [H,W] is the one seen.

    A truth of which less than min_visibility is still seen becomes IGNORED, one of which nothing is seen goes, and a
    box that is covered from a side shrinks to what is left.
    """
    boxes, labels = truths[0].copy(), truths[1].copy()
    height, width = top.shape
    gone = []
    pixels = _whole_pixels(boxes * size_of(top)).tolist()
    for i, ((x1, y1, x2, y2), layer) in enumerate(zip(pixels, layers, strict=True)):
        seen = top[y1:y2, x1:x2] <= layer
        count = np.count_nonzero(seen)
        if count == seen.size:
            continue
        if not count:
            gone.append(i)
            continue
        if count < min_visibility * seen.size:
            labels[i] = IGNORED
        x, y, across, down = cv2.boundingRect(seen.view(np.uint8))
        low_x, low_y, high_x, high_y = boxes[i].tolist()
        boxes[i] = (
            max(low_x, (x1 + x) / width),
            max(low_y, (y1 + y) / height),
            min(high_x, (x1 + x + across) / width),
            min(high_y, (y1 + y + down) / height),
        )
    if not gone:
        return boxes, labels
    return np.delete(boxes, gone, axis=0), np.delete(labels, gone)


def _whole_pixels(edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """The pixels that boxes [g,4], xyxy in pixels, touch; a thousandth is rounding."""
    return np.concatenate([np.floor(edges[:, :2] + 1e-3), np.ceil(edges[:, 2:] - 1e-3)], axis=1).astype(np.int64)


def _part(image: Image, quarter: Window, scale: float, rng: np.random.Generator) -> Window:
    """The window of an image that fills a quarter at this scale, at a random place."""
    height, width = image.shape[:2]
    across, down = min(max(1, round(quarter.width / scale)), width), min(max(1, round(quarter.height / scale)), height)
    x, y = int(rng.integers(width - across + 1)), int(rng.integers(height - down + 1))
    return Window(x, y, x + across, y + down)
