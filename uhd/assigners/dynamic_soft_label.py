"""Dynamic soft labels (NanoDet-Plus): as many places a truth as its best IoUs add up to, labelled by their IoU."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from uhd.assigners.base import Predictions, Truths, settle
from uhd.boxes import box_iou
from uhd.types import PADDING, Assignment, Targets

IOU_WEIGHT = 3.0
SMALLEST_IOU = 1e-7
SUMMED_IOUS = 13
MIN_LOG = -100.0
"""Logarithm of a score of 0 (or 1, for the absent)."""
CENTRE_CELLS = 1.0
"""Cells around the centre of a truth that holds no point, whose places may learn it (max-norm, strict)."""
ROUNDS = 2
"""How often truths without a place take one: in the first, two of them may want the same."""


class DynamicSoftLabelAssigner:
    """cost = BCE(score, IoU of the truth's class) * difference^2 summed over classes + 3 * -ln IoU.

    A truth is learned only by places whose point lies strictly inside it: no distance is negative. One that is too
    small to hold a point, or whose points others need, has those less than a cell of their own grid from its centre.
    Boxes without area are no truths.
    """

    @torch.no_grad()
    def __call__(self, predictions: Predictions, points: Tensor, cells: Tensor, targets: Targets) -> Assignment:
        """points [N,2] (x, y) and cells [N,2] (w, h) of the places, normalised; quality is the IoU of the positives."""
        truths = _with_area(targets)
        batch, places = predictions.boxes.shape[:2]
        inside, near = _inside_and_near(truths.boxes, points, cells)
        candidate = torch.where(inside.any(dim=1, keepdim=True), inside, near)
        overlap = box_iou(truths.boxes[:, None], predictions.boxes[truths.image])
        cost = _class_cost(predictions.scores, truths, overlap) - IOU_WEIGHT * torch.log(overlap + SMALLEST_IOU)
        near_cost, cost = cost.masked_fill(~near, torch.inf), cost.masked_fill(~candidate, torch.inf)
        iou = overlap * candidate
        limit = min(SUMMED_IOUS, places)
        count = iou.topk(limit, dim=1).values.sum(dim=1).floor().long().clamp(min=1)
        lowest, index = cost.topk(limit, dim=1, largest=False)
        chosen = (torch.arange(limit, device=cost.device) < count[:, None]) & lowest.isfinite()
        wanted = torch.zeros_like(candidate).scatter(1, index, chosen)
        kept, truth = settle(wanted, cost, truths, batch)
        for _ in range(ROUNDS):
            kept, truth = _homes_for_all(kept, cost, near_cost, truths, batch)
        # Each place has at most one truth left, so the sum over truths is a selection.
        quality = iou.new_zeros(batch, places).index_add_(0, truths.image, overlap * kept)
        return Assignment(truth, quality)


def _with_area(targets: Targets) -> Truths:
    """The real truths whose boxes have an area."""
    size = targets.boxes[..., 2:] - targets.boxes[..., :2]
    has_area = (size > 0).all(dim=-1)
    return Truths.of(replace(targets, labels=targets.labels.masked_fill(~has_area & (targets.labels >= 0), PADDING)))


def _inside_and_near(boxes: Tensor, points: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
    """Which places lie inside boxes [G,4], and which near their centres, at least one each: [G,N] bool."""
    inside = ((points > boxes[:, None, :2]) & (points < boxes[:, None, 2:])).all(dim=-1)
    centres = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2
    near = ((points - centres).abs() < CENTRE_CELLS * cells).all(dim=-1)
    return inside, near


def _class_cost(scores: Tensor, truths: Truths, iou: Tensor) -> Tensor:
    """What scores [B,N,C] cost beside truths whose class is to be as likely as their IoU [G,N], [G,N]."""
    # Written out: torch's function raises on scores of nan, whose step is to be skipped.
    absent = -torch.log1p(-scores).clamp(min=MIN_LOG)
    present = -torch.log(scores).clamp(min=MIN_LOG)
    elsewhere = absent * scores.square()
    p, no, yes, other = (
        value.transpose(1, 2)[truths.image, truths.labels] for value in (scores, absent, present, elsewhere)
    )
    own = (iou * yes + (1 - iou) * no) * (iou - p).square()
    return elsewhere.sum(dim=-1)[truths.image] - other + own


def _homes_for_all(kept: Tensor, cost: Tensor, near_cost: Tensor, truths: Truths, batch: int) -> tuple[Tensor, Tensor]:
    """As `settle`, with pairs in which a truth that lost all its places to others has its cheapest back.

    It takes it from a truth that keeps another; a place that is a truth's only one is not taken. Where all of its own
    are such, it has the cheapest near its centre.
    """
    counts = kept.sum(dim=1, keepdim=True)
    fixed = kept & (counts == 1)
    blocked = cost.new_zeros(batch, cost.shape[1]).index_add_(0, truths.image, fixed.float()) > 0
    open_cost, near_cost = (each.masked_fill(blocked[truths.image], torch.inf) for each in (cost, near_cost))
    open_cost = torch.where(open_cost.isfinite().any(dim=1, keepdim=True), open_cost, near_cost)
    lowest, place = open_cost.min(dim=1, keepdim=True)
    is_taking = (counts == 0) & lowest.isfinite()
    taken = torch.zeros_like(kept).scatter(1, place, is_taking)
    taken, _ = settle(taken, open_cost, truths, batch)
    lost = cost.new_zeros(batch, cost.shape[1]).index_add_(0, truths.image, taken.float()) > 0
    # Each place has one truth already: what is settled here is only which row of Targets that is.
    return settle(taken | (kept & ~lost[truths.image]), torch.zeros_like(cost), truths, batch)
