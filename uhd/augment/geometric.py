"""Ops that move or remove truths."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from uhd.augment.pipeline import Op, class_map, number, param
from uhd.augment.sample import Sample
from uhd.types import IGNORED

_LOG = logging.getLogger("uhd")

# Corners are float32: a box of exactly the minimum may measure this share less.
_AREA_ROUNDING = 1e-5


@dataclass(frozen=True)
class HorizontalFlip(Op):
    """Mirrors the picture left to right.

    class_swap_map: (original id, id of its mirror image) pairs for classes that have sides, applied
    as listed: a swap of two classes lists both directions.
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
        small = width * height < self.min_area * (1 - _AREA_ROUNDING)
        return Sample(sample.image, sample.boxes, np.where(small, IGNORED, sample.labels))
