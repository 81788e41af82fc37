"""COCO's greedy matching of detections to truths, for all pictures and classes at once.

The rules are those of pycocotools' COCOeval.evaluateImg: the highest score goes first
and takes the free truth of its picture and class with the highest IoU; truths out of the area range
are taken only when no other is left, and whatever takes one is neither right nor wrong. Nor is what
takes none and lies in a crowd, here one of any class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uhd.eval.samples import Bools, Floats, Ints, Samples

_PAIRS_AT_ONCE = 1 << 20
"""Limits the memory for the overlaps of large data sets (about 100 MB)."""


@dataclass(frozen=True)
class Candidates:
    """Everything that could match: pairs of the same picture and class that overlap enough.

    detections [D] are rows of Samples, sorted by class, picture and falling score, with at most so
    many a picture and class. Pairs: detection [P] index into detections (rising), truth [P] row of
    Samples, iou [P]. wave [P]: how many detections of the same picture and class with a pair of
    their own come before; pairs of one wave compete for no truth.
    """

    detections: Ints
    detection: Ints
    truth: Ints
    iou: Floats
    wave: Ints


def find_candidates(samples: Samples, iou_thresh: float, max_detections: int) -> Candidates:
    """The pairs with IoU >= iou_thresh among the best max_detections of each picture and class."""
    num_images = max(len(samples.ids), 1)
    order = np.lexsort((-samples.scores, samples.images, samples.labels))
    group = (samples.labels * num_images + samples.images)[order]
    kept = _rank_in_run(group) < max_detections
    order, group = order[kept], group[kept]

    truth_group = samples.truth_labels * num_images + samples.truth_images
    truth_order = np.argsort(truth_group, kind="stable")
    starts = np.searchsorted(truth_group[truth_order], group, side="left")
    counts = np.searchsorted(truth_group[truth_order], group, side="right") - starts

    parts = []
    for rows in _blocks(counts):
        detection = rows.repeat(counts[rows])
        truth = truth_order[starts[detection] + _rank_in_run(detection)]
        iou = _paired_iou(samples.boxes[order[detection]], samples.truth_boxes[truth])
        near = iou >= iou_thresh
        parts.append((detection[near], truth[near], iou[near]))
    detection, truth, iou = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))

    with_pair, pair_row = np.unique(detection, return_inverse=True)
    return Candidates(order, detection, truth, iou, _rank_in_run(group[with_pair])[pair_row])


def match(candidates: Candidates, ignored: Bools) -> Ints:
    """The truth that each detection takes, row of Samples, -1 for none: [D] as candidates.detections.

    ignored [G] marks the truths that are out of the area range.
    """
    # By wave, then by detection; the most wanted truth of a detection first. COCO's loop gives equal
    # overlaps to the truth that comes last.
    preference = np.lexsort(
        (-candidates.truth, -candidates.iou, ignored[candidates.truth], candidates.detection, candidates.wave)
    )
    detection, truth, wave = (array[preference] for array in (candidates.detection, candidates.truth, candidates.wave))
    taken = np.full(len(candidates.detections), -1)
    free = np.ones(len(ignored), dtype=bool)
    for pairs in np.split(np.arange(len(wave)), np.flatnonzero(np.diff(wave)) + 1):
        available = pairs[free[truth[pairs]]]
        chosen = available[_rank_in_run(detection[available]) == 0]
        taken[detection[chosen]] = truth[chosen]
        free[truth[chosen]] = False
    return taken


def in_ignored_regions(samples: Samples, share: float) -> Bools:
    """Which detections [D] lie, with at least this share of their area, in one of their picture's ignored regions."""
    covered = np.zeros(len(samples.labels), dtype=bool)
    starts = np.searchsorted(samples.images, samples.ignored_images, side="left")
    ends = np.searchsorted(samples.images, samples.ignored_images, side="right")
    for region, start, end in zip(samples.ignored_boxes, starts.tolist(), ends.tolist(), strict=True):
        boxes = samples.boxes[start:end]
        covered[start:end] |= _overlap(boxes, region) >= share * np.maximum(_area(boxes), np.finfo(np.float64).tiny)
    return covered


def _rank_in_run(values: Ints) -> Ints:
    """The position of each element in its run of equal neighbours: 7 7 7 4 4 to 0 1 2 0 1."""
    index = np.arange(len(values))
    starts = np.flatnonzero(np.diff(values, prepend=values[:1] - 1))
    return index - starts.repeat(np.diff(starts, append=len(values)))


def _blocks(counts: Ints) -> list[Ints]:
    """Consecutive row numbers in blocks of about _PAIRS_AT_ONCE pairs, at least one block."""
    block = np.cumsum(counts) // _PAIRS_AT_ONCE
    return np.split(np.arange(len(counts)), np.flatnonzero(np.diff(block)) + 1)


def _paired_iou(boxes: Floats, others: Floats) -> Floats:
    """IoU [P] of boxes [P,4] and others [P,4], xyxy; 0 where nothing overlaps."""
    overlap = _overlap(boxes, others)
    union = _area(boxes) + _area(others) - overlap
    iou: Floats = np.divide(overlap, union, out=np.zeros_like(overlap), where=overlap > 0)
    return iou


def _overlap(boxes: Floats, others: Floats) -> Floats:
    """The area [P] that boxes [P,4] and others [P,4] or [4] share."""
    sides = np.minimum(boxes[:, 2:], others[..., 2:]) - np.maximum(boxes[:, :2], others[..., :2])
    return np.where((sides > 0).all(axis=1), sides[:, 0] * sides[:, 1], 0.0)


def _area(boxes: Floats) -> Floats:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
