"""Box arithmetic: formats, the IoU family and suppression. Boxes are xyxy."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torchvision
from torch import Tensor

from uhd.types import PADDING, Detections

EPS = 1e-9
"""Keeps divisions finite; far below the area of the smallest box that can be seen (1 px of 4096)."""

IoUKind = Literal["iou", "giou", "ciou"]


def box_area(boxes: Tensor) -> Tensor:
    """[...,4] to [...]; a box turned inside out has area 0."""
    size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return size[..., 0] * size[..., 1]


def _intersection(a: Tensor, b: Tensor) -> Tensor:
    size = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    return size[..., 0] * size[..., 1]


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of broadcastable boxes: [...,4] and [...,4] to [...], 0..1; boxes without area give 0."""
    inter = _intersection(a, b)
    return inter / (box_area(a) + box_area(b) - inter).clamp(min=EPS)


def box_similarity(a: Tensor, b: Tensor, kind: IoUKind) -> tuple[Tensor, Tensor]:
    """IoU and its flavour `kind` of paired boxes, [...,4] and [...,4] to two [...].

    GIoU (arXiv:1902.09630) lies in -1..1; CIoU (arXiv:1911.08287) subtracts the normalised distance
    of the centres and a term for the aspect ratio, whose weight carries no gradient.
    """
    inter = _intersection(a, b)
    union = (box_area(a) + box_area(b) - inter).clamp(min=EPS)
    iou = inter / union
    if kind == "iou":
        return iou, iou
    hull = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    if kind == "giou":
        hull_area = (hull[..., 0] * hull[..., 1]).clamp(min=EPS)
        return iou, iou - (hull_area - union) / hull_area
    offset = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2
    distance = offset.square().sum(-1) / hull.square().sum(-1).clamp(min=EPS)
    size_a, size_b = a[..., 2:] - a[..., :2], b[..., 2:] - b[..., :2]
    angle = torch.atan(size_a[..., 0] / size_a[..., 1].clamp(min=EPS)) - torch.atan(
        size_b[..., 0] / size_b[..., 1].clamp(min=EPS)
    )
    aspect = 4 / math.pi**2 * angle.square()
    with torch.no_grad():
        weight = aspect / (1 - iou + aspect).clamp(min=EPS)
    return iou, iou - distance - weight * aspect


def suppress(candidates: Detections, conf_thresh: float, iou_thresh: float | None, topk: int) -> Detections:
    """What remains of candidates [B,K] after threshold, class-wise NMS and top-k: [B,topk].

    iou_thresh None leaves the NMS out. A score of 0 is no detection. Rows are sorted by score; unused rows are zero
    with label PADDING.
    """
    batch = candidates.scores.shape[0]
    is_found = (candidates.scores >= conf_thresh) & (candidates.scores > 0) & (candidates.labels >= 0)
    image, row = torch.nonzero(is_found, as_tuple=True)
    boxes, scores, labels = (field[image, row] for field in (candidates.boxes, candidates.scores, candidates.labels))
    if iou_thresh is None or not len(boxes):
        keep = torch.arange(len(boxes), device=boxes.device)
    else:
        # batched_nms keeps groups apart by shifting their boxes: right for coordinates >= 0 only, and the shifted
        # boxes of a large batch, or beside one huge box, need more than float32 to keep their shape.
        shifted = boxes.double() - boxes.min()
        group = image * (int(labels.max()) + 1) + labels
        keep = torchvision.ops.batched_nms(shifted, scores.double(), group, iou_thresh).sort().values
    # Stable sorts, by score and then by picture: where scores tie, the order of the candidates stays.
    keep = keep[torch.argsort(scores[keep], descending=True, stable=True)]
    keep = keep[torch.argsort(image[keep], stable=True)]
    image = image[keep]
    counts = torch.bincount(image, minlength=batch)
    rank = torch.arange(len(keep), device=image.device) - (counts.cumsum(0) - counts)[image]
    inside = rank < topk
    keep, image, rank = keep[inside], image[inside], rank[inside]
    result = _no_detections(candidates, batch, topk)
    result.boxes[image, rank], result.scores[image, rank] = boxes[keep], scores[keep]
    result.labels[image, rank] = labels[keep]
    return result


def soft_suppress(candidates: Detections, conf_thresh: float, sigma: float, topk: int) -> Detections:
    """The same with Gaussian soft suppression (arXiv:1704.04503): boxes that overlap a better one lose score.

    The best box left is shown next, and the scores of all others of its class in the picture fall by
    exp(-IoU^2 / sigma); what falls below the threshold goes. Where scores tie, the first candidate is the better one.
    """
    batch, count = candidates.scores.shape
    boxes, labels = candidates.boxes.double(), candidates.labels
    is_found = (candidates.scores >= conf_thresh) & (candidates.scores > 0) & (labels >= 0)
    left = torch.where(is_found, candidates.scores, 0).double()
    result = _no_detections(candidates, batch, topk)
    for rank in range(min(topk, count)):
        # Decayed scores are no longer sorted: the best is looked for each time.
        best, row = left.max(dim=1, keepdim=True)
        score = best.to(candidates.scores.dtype)
        is_shown = (score >= conf_thresh) & (score > 0)
        if not is_shown.any():
            break
        box, label = boxes.gather(1, row.unsqueeze(2).expand(-1, -1, 4)), labels.gather(1, row)
        result.boxes[:, rank] = torch.where(is_shown, box.squeeze(1).to(candidates.boxes.dtype), 0)
        result.scores[:, rank] = torch.where(is_shown, score, 0).squeeze(1)
        result.labels[:, rank] = torch.where(is_shown, label, PADDING).squeeze(1)
        falls = torch.where(labels == label, torch.exp(-box_iou(boxes, box).square() / sigma), 1.0)
        left = (left * falls).scatter(1, row, 0.0)
    return result


def _no_detections(like: Detections, batch: int, topk: int) -> Detections:
    """Unused rows only."""
    return Detections(
        like.boxes.new_zeros(batch, topk, 4),
        like.scores.new_zeros(batch, topk),
        like.labels.new_full((batch, topk), PADDING),
    )
