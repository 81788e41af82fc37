"""COCO's own figures by COCO's own code, in pixels of the original pictures."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from uhd.eval.samples import Floats, Ints, Samples

_STATS = {"coco/AP": 0, "coco/AP50": 1, "coco/AP75": 2, "coco/APs": 3, "coco/APm": 4, "coco/APl": 5, "coco/AR100": 8}
"""Our name and the place in COCOeval.stats."""


def coco_metrics(samples: Samples, class_names: Sequence[str], per_class: bool) -> dict[str, float]:
    """AP over IoU 0.5:0.95, AP50, AP75, AP of small, medium and large truths, and AR of 100 detections.

    Areas are in pixels of the original pictures (Samples.sizes), small below 32x32, large above
    96x96. class_names [C] in the order of labels; with per_class also coco/AP/NAME and coco/AP50/NAME.
    A figure without any truth to measure it on is nan. Prints nothing.
    """
    # pycocotools prints its progress and its tables.
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = _dataset(samples, class_names)
        coco.createIndex()
        evaluation = COCOeval(coco, _results(coco, samples), iouType="bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    metrics = {name: _defined(evaluation.stats[place]) for name, place in _STATS.items()}
    if per_class:
        # [IoU thresholds, recalls, classes] at all areas and 100 detections.
        precision = evaluation.eval["precision"][:, :, :, 0, -1]
        for label, name in enumerate(class_names):
            metrics[f"coco/AP/{name}"] = _defined(precision[:, :, label].mean())
            metrics[f"coco/AP50/{name}"] = _defined(precision[0, :, label].mean())
    return metrics


def _dataset(samples: Samples, class_names: Sequence[str]) -> dict[str, Any]:
    """The truths as the content of a COCO annotation file."""
    boxes = _pixel_xywh(samples.truth_boxes, samples.sizes[samples.truth_images])
    rows = zip(boxes.tolist(), samples.truth_labels.tolist(), samples.truth_images.tolist(), strict=True)
    return {
        "info": {},
        "images": [
            {"id": image, "height": height, "width": width}
            for image, (height, width) in enumerate(samples.sizes.tolist())
        ],
        "categories": [{"id": label, "name": name} for label, name in enumerate(class_names)],
        "annotations": [
            # COCOeval takes id 0 for "not matched".
            {"id": row + 1, "image_id": image, "category_id": label, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for row, (box, label, image) in enumerate(rows)
        ]
        + [
            {**crowd, "id": len(boxes) + 1 + row, "area": crowd["bbox"][2] * crowd["bbox"][3], "iscrowd": 1}
            for row, crowd in enumerate(_crowds(samples, len(class_names)))
        ],
    }


def _crowds(samples: Samples, num_classes: int) -> Iterator[dict[str, Any]]:
    """The ignored regions, of every class: which one theirs was is not known any more."""
    boxes = _pixel_xywh(samples.ignored_boxes, samples.sizes[samples.ignored_images])
    for box, image in zip(boxes.tolist(), samples.ignored_images.tolist(), strict=True):
        for label in range(num_classes):
            yield {"image_id": image, "category_id": label, "bbox": box}


def _results(truths: COCO, samples: Samples) -> COCO:
    """The detections as COCO results; loadRes itself fails without any."""
    boxes = _pixel_xywh(samples.boxes, samples.sizes[samples.images])
    if len(boxes) == 0:
        empty = COCO()
        empty.dataset = {**truths.dataset, "annotations": []}
        empty.createIndex()
        return empty
    columns = (boxes, samples.scores, samples.labels, samples.images)
    return truths.loadRes(
        [
            {"image_id": image, "category_id": label, "bbox": box, "score": score}
            for box, score, label, image in zip(*(column.tolist() for column in columns), strict=True)
        ]
    )


def _pixel_xywh(boxes: Floats, sizes: Ints) -> Floats:
    """boxes [n,4] xyxy 0-1 in pictures of sizes [n,2] (height, width) to left, top, width, height in pixels."""
    corners = boxes * sizes[:, [1, 0, 1, 0]]
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def _defined(value: float) -> float:
    """COCOeval writes -1 where there is nothing to measure."""
    return float(value) if value > -1 else math.nan
