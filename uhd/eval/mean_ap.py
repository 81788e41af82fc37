"""mAP at IoU 0.5 as COCO defines it, and what a user reads beside it: AP by size, F1, false alarms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uhd.eval.matching import Candidates, find_candidates, in_ignored_regions, match
from uhd.eval.samples import (
    Bools,
    Floats,
    Ints,
    PaddedDetections,
    PaddedTruths,
    Samples,
    merge_samples,
)

IOU_THRESH = 0.5
"""Overlap from which a detection has found a truth."""
MAX_DETECTIONS = 100
"""Detections looked at in a picture, for each class (COCO's maxDets)."""
AREA_RANGES: Mapping[str, tuple[float, float]] = {
    "ge9px2": (9, math.inf),
    "9_64px2": (9, 64),
    "64_400px2": (64, 400),
    "gt400px2": (400, math.inf),
}
"""Areas of truths in pixels of the network's input; both ends belong to a range, as in pycocotools."""
RECALL_GRID: Floats = np.linspace(0, 1, 101)
CONFIDENCE_GRID: Floats = np.linspace(0, 1, 1001)


@dataclass(frozen=True)
class OperatingPoint:
    """What a user meets who shows detections from a score on, all classes together.

    threshold: the score, inclusive. precision, recall, f1: 0 where there is nothing to divide by. A
    false alarm is a detection that has found no truth of its class; false_alarms_per_empty_image
    counts the pictures without any truth or ignored region only and is nan where there is no such picture.
    """

    threshold: float
    precision: float
    recall: float
    f1: float
    false_alarms_per_image: float
    false_alarms_per_empty_image: float


@dataclass(frozen=True)
class ConfidenceCurves:
    """Precision, recall and F1 [T] of all classes together against the score threshold [T] from 0 to 1.

    precision is nan above the highest score.
    """

    threshold: Floats
    precision: Floats
    recall: Floats
    f1: Floats


@dataclass(frozen=True)
class Evaluation:
    """The result for a data set.

    map50: mean AP at IoU 0.5 over the classes that have truths; 0 where no class has any.
    ap_by_class [C]: nan for a class without truths. ap_by_area: map50 by size of the truth, keys of
    AREA_RANGES, nan where no truth has that size. precision_by_recall [C,101]: the interpolated
    precision at the recalls of RECALL_GRID, nan for a class without truths.
    """

    map50: float
    ap_by_class: Floats
    ap_by_area: Mapping[str, float]
    at_conf_thresh: OperatingPoint
    at_best_f1: OperatingPoint
    precision_by_recall: Floats
    by_confidence: ConfidenceCurves


class MeanAP:
    """Collects detections and truths batch by batch and evaluates them.

    img_size is the network's input (height, width) in pixels, in which areas are measured;
    conf_thresh the score from which a detection counts for precision, recall, F1 and false alarms.
    """

    def __init__(self, num_classes: int, img_size: tuple[int, int], conf_thresh: float) -> None:
        self.num_classes = num_classes
        self.img_size = img_size
        self.conf_thresh = conf_thresh
        self._parts: list[Samples] = []

    def update(
        self,
        image_ids: NDArray[np.integer],
        sizes: NDArray[np.integer],
        detections: PaddedDetections,
        truths: PaddedTruths,
    ) -> None:
        """Adds a batch: image_ids [B], sizes [B,2] (original height, width). A known image id is left out."""
        self.add(Samples.from_padded(image_ids, sizes, detections, truths))

    def add(self, samples: Samples) -> None:
        """Adds what another process has collected."""
        self._parts.append(samples)

    def samples(self) -> Samples:
        """Everything collected, in the order of image ids."""
        self._parts = [merge_samples(self._parts)]
        return self._parts[0]

    def compute(self) -> Evaluation:
        """The evaluation of everything collected so far."""
        samples = self.samples()
        assert max(samples.labels.max(initial=-1), samples.truth_labels.max(initial=-1)) < self.num_classes
        candidates = find_candidates(samples, IOU_THRESH, MAX_DETECTIONS)
        precision, found = self._precision_by_recall(samples, candidates, (0, math.inf))
        by_area = {
            name: self._precision_by_recall(samples, candidates, area_range)[0]
            for name, area_range in AREA_RANGES.items()
        }
        outcomes = _Outcomes.of(samples, candidates, found)
        mean_ap = _mean(precision)
        return Evaluation(
            map50=0.0 if math.isnan(mean_ap) else mean_ap,
            ap_by_class=precision.mean(axis=1),
            ap_by_area={name: _mean(curves) for name, curves in by_area.items()},
            at_conf_thresh=outcomes.at(self.conf_thresh),
            at_best_f1=outcomes.at(outcomes.best_threshold(default=self.conf_thresh)),
            precision_by_recall=precision,
            by_confidence=outcomes.curves(),
        )

    def _precision_by_recall(
        self, samples: Samples, candidates: Candidates, area_range: tuple[float, float]
    ) -> tuple[Floats, Bools]:
        """Precision [C,101] for truths within the range, and which of the candidates' detections found a truth."""
        labels, scores = samples.labels[candidates.detections], samples.scores[candidates.detections]
        outside = self._outside(samples.truth_boxes, area_range)
        taken = match(candidates, outside)
        found = taken >= 0
        ignored = self._outside(samples.boxes[candidates.detections], area_range)
        ignored |= in_ignored_regions(samples, IOU_THRESH)[candidates.detections]
        ignored[found] = outside[taken[found]]

        num_truths = np.bincount(samples.truth_labels[~outside], minlength=self.num_classes)
        precision = np.full((self.num_classes, len(RECALL_GRID)), np.nan)
        for label in np.flatnonzero(num_truths):
            rows = np.flatnonzero((labels == label) & ~ignored)
            rows = rows[np.argsort(-scores[rows], kind="stable")]
            precision[label] = _interpolated_precision(found[rows], num_truths[label])
        return precision, found

    def _outside(self, boxes: Floats, area_range: tuple[float, float]) -> Bools:
        """Which boxes [n,4] have an area out of the range."""
        height, width = self.img_size
        area = (boxes[:, 2] - boxes[:, 0]) * width * ((boxes[:, 3] - boxes[:, 1]) * height)
        return (area < area_range[0]) | (area > area_range[1])


def to_metrics(evaluation: Evaluation) -> dict[str, float]:
    """The figures by the names they have in logs; nan where one is not defined."""
    chosen, best = evaluation.at_conf_thresh, evaluation.at_best_f1
    return {
        "mAP@0.5": evaluation.map50,
        **{f"AP50_{name}": value for name, value in evaluation.ap_by_area.items()},
        "precision": chosen.precision,
        "recall": chosen.recall,
        "f1": chosen.f1,
        "false_alarms_per_image": chosen.false_alarms_per_image,
        "false_alarms_per_empty_image": chosen.false_alarms_per_empty_image,
        "best_f1": best.f1,
        "best_f1_threshold": best.threshold,
        "precision_at_best_f1": best.precision,
        "recall_at_best_f1": best.recall,
        "false_alarms_per_image_at_best_f1": best.false_alarms_per_image,
        "false_alarms_per_empty_image_at_best_f1": best.false_alarms_per_empty_image,
    }


def _interpolated_precision(found: Bools, num_truths: int) -> Floats:
    """COCO's precision [101]: at each recall of the grid the best precision at this recall or a higher one.

    found [n] in the order of falling score: whether a detection has found one of the num_truths truths.
    """
    true_positives = np.cumsum(found)
    precision = true_positives / np.arange(1, len(found) + 1)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    first_at_recall = np.searchsorted(true_positives / num_truths, RECALL_GRID, side="left")
    interpolated: Floats = np.append(best_from_here, 0.0)[first_at_recall]
    return interpolated


def _mean(precision: Floats) -> float:
    """Mean AP over the classes (rows) that are not nan; nan where all are."""
    present = precision[~np.isnan(precision[:, 0])]
    return float(present.mean()) if present.size else math.nan


def _f1(true_positives: NDArray[np.integer], num_detections: NDArray[np.integer], num_truths: int) -> Floats:
    """Harmonic mean of precision and recall, in the form that is defined without detections or truths."""
    f1: Floats = 2 * true_positives / np.maximum(num_detections + num_truths, 1)
    return f1


@dataclass(frozen=True)
class _Outcomes:
    """Every detection by falling score: what it would count as where the threshold lets it through.

    Those in ignored regions that found no truth are left out.
    """

    scores: Floats
    found: Bools
    in_empty_image: Bools
    num_truths: int
    num_images: int
    num_empty_images: int

    @classmethod
    def of(cls, samples: Samples, candidates: Candidates, found: Bools) -> _Outcomes:
        order = np.argsort(-samples.scores[candidates.detections], kind="stable")
        order = order[found[order] | ~in_ignored_regions(samples, IOU_THRESH)[candidates.detections[order]]]
        rows = candidates.detections[order]
        annotated = np.concatenate([samples.truth_images, samples.ignored_images])
        empty = np.bincount(annotated, minlength=len(samples.ids)) == 0
        return cls(
            scores=samples.scores[rows],
            found=found[order],
            in_empty_image=empty[samples.images[rows]],
            num_truths=len(samples.truth_labels),
            num_images=len(samples.ids),
            num_empty_images=int(empty.sum()),
        )

    def at(self, threshold: float) -> OperatingPoint:
        """The counts of all detections with this score or a higher one."""
        shown = self._num_shown(np.array([threshold]))
        count = int(shown[0])
        true_positives = int(self.found[:count].sum())
        false_alarms = count - true_positives
        in_empty = int(self.in_empty_image[:count].sum())
        return OperatingPoint(
            threshold=threshold,
            precision=true_positives / max(count, 1),
            recall=true_positives / max(self.num_truths, 1),
            f1=float(_f1(np.array(true_positives), shown, self.num_truths)[0]),
            false_alarms_per_image=false_alarms / max(self.num_images, 1),
            false_alarms_per_empty_image=in_empty / self.num_empty_images if self.num_empty_images else math.nan,
        )

    def best_threshold(self, default: float) -> float:
        """The score threshold of highest F1, the highest of several; default where no detection found a truth."""
        if not self.found.any():
            return default
        shown = self._num_shown(self.scores)
        f1 = _f1(np.cumsum(self.found, dtype=np.int64)[shown - 1], shown, self.num_truths)
        return float(self.scores[np.argmax(f1)])

    def curves(self) -> ConfidenceCurves:
        """Precision, recall and F1 on CONFIDENCE_GRID."""
        shown = self._num_shown(CONFIDENCE_GRID)
        true_positives = np.append(0, np.cumsum(self.found, dtype=np.int64))[shown]
        return ConfidenceCurves(
            threshold=CONFIDENCE_GRID,
            precision=np.where(shown > 0, true_positives / np.maximum(shown, 1), np.nan),
            recall=true_positives / max(self.num_truths, 1),
            f1=_f1(true_positives, shown, self.num_truths),
        )

    def _num_shown(self, thresholds: Floats) -> Ints:
        return np.searchsorted(-self.scores, -thresholds, side="right")
