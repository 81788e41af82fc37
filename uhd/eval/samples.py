"""What an evaluation is computed from: every picture's detections and truths, in flat arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from uhd.types import IGNORED

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class PaddedDetections(NamedTuple):
    """A batch of detections: boxes [B,K,4] xyxy 0-1, scores [B,K], labels [B,K] (negative: no detection)."""

    boxes: NDArray[np.floating]
    scores: NDArray[np.floating]
    labels: NDArray[np.integer]


class PaddedTruths(NamedTuple):
    """A batch of truths: boxes [B,M,4] xyxy 0-1, labels [B,M] (IGNORED: a region to leave out, else negative: none)."""

    boxes: NDArray[np.floating]
    labels: NDArray[np.integer]


@dataclass(frozen=True)
class Samples:
    """Pictures with their detections and truths, padding removed.

    ids [I] index of the picture in its data set; sizes [I,2] original height and width in pixels.
    Detections: boxes [D,4] xyxy 0-1, scores [D], labels [D] class, images [D] row of ids. Truths:
    the same without scores. Regions in which a detection is neither right nor wrong: boxes [R,4] and images [R]. Rows
    of a picture are neighbours and stand in the order of ids.
    """

    ids: Ints
    sizes: Ints
    boxes: Floats
    scores: Floats
    labels: Ints
    images: Ints
    truth_boxes: Floats
    truth_labels: Ints
    truth_images: Ints
    ignored_boxes: Floats = field(default_factory=lambda: np.zeros((0, 4)))
    ignored_images: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @classmethod
    def from_padded(
        cls,
        ids: NDArray[np.integer],
        sizes: NDArray[np.integer],
        detections: PaddedDetections,
        truths: PaddedTruths,
    ) -> Samples:
        """The samples of one batch: ids [B], sizes [B,2] (original height, width in pixels)."""
        assert len(ids) == len(sizes) == len(detections.labels) == len(truths.labels)
        detected, present, ignored = detections.labels >= 0, truths.labels >= 0, truths.labels == IGNORED
        return cls(
            ids=np.asarray(ids, dtype=np.int64),
            sizes=np.asarray(sizes, dtype=np.int64).reshape(-1, 2),
            boxes=detections.boxes[detected].astype(np.float64),
            scores=detections.scores[detected].astype(np.float64),
            labels=detections.labels[detected].astype(np.int64),
            images=detected.nonzero()[0],
            truth_boxes=truths.boxes[present].astype(np.float64),
            truth_labels=truths.labels[present].astype(np.int64),
            truth_images=present.nonzero()[0],
            ignored_boxes=truths.boxes[ignored].astype(np.float64),
            ignored_images=ignored.nonzero()[0],
        )


def merge_samples(parts: Sequence[Samples]) -> Samples:
    """All parts as one, pictures in the order of their ids.

    A picture that occurs again (samplers of several processes repeat some to fill the last batch)
    counts once, as it came first.
    """
    if not parts:
        return _no_samples()
    starts = np.cumsum([0, *(len(part.ids) for part in parts[:-1])])
    images = np.concatenate([part.images + start for part, start in zip(parts, starts, strict=True)])
    truth_images = np.concatenate([part.truth_images + start for part, start in zip(parts, starts, strict=True)])
    ignored_images = np.concatenate([part.ignored_images + start for part, start in zip(parts, starts, strict=True)])

    ids, first = np.unique(np.concatenate([part.ids for part in parts]), return_index=True)
    row = np.full(sum(len(part.ids) for part in parts), -1)
    row[first] = np.arange(len(ids))
    detections, truths, ignored = (_kept_in_order(row[owners]) for owners in (images, truth_images, ignored_images))
    return Samples(
        ids=ids,
        sizes=np.concatenate([part.sizes for part in parts])[first],
        boxes=np.concatenate([part.boxes for part in parts])[detections],
        scores=np.concatenate([part.scores for part in parts])[detections],
        labels=np.concatenate([part.labels for part in parts])[detections],
        images=row[images][detections],
        truth_boxes=np.concatenate([part.truth_boxes for part in parts])[truths],
        truth_labels=np.concatenate([part.truth_labels for part in parts])[truths],
        truth_images=row[truth_images][truths],
        ignored_boxes=np.concatenate([part.ignored_boxes for part in parts])[ignored],
        ignored_images=row[ignored_images][ignored],
    )


def _kept_in_order(rows: Ints) -> Ints:
    """Indices that sort by picture (stable) and leave out the pictures of row -1."""
    order = np.argsort(rows, kind="stable")
    return order[rows[order] >= 0]


def _no_samples() -> Samples:
    no_boxes, none = np.zeros((0, 4)), np.zeros(0, dtype=np.int64)
    return Samples(none, np.zeros((0, 2), dtype=np.int64), no_boxes, np.zeros(0), none, none, no_boxes, none, none)
