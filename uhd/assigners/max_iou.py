"""The rule of SSD: what overlaps enough, and one prior for each truth in any case."""

from __future__ import annotations

import torch
from torch import Tensor

from uhd.assigners.base import Truths, settle
from uhd.boxes import box_iou
from uhd.types import Assignment, Targets

MATCH_IOU = 0.5
"""Overlap with a truth from which a prior learns it."""
_CERTAIN = 2.0
"""More than any overlap: a prior keeps the truth that has no other."""


@torch.no_grad()
def assign_by_iou(priors: Tensor, targets: Targets) -> Assignment:
    """Which priors [N,4] xyxy learn which truths (SSD, arXiv:1512.02325): truth [B,N].

    Each truth has a prior of its own (`one_each`), while there are priors. Each other prior learns the truth that it
    overlaps most, from MATCH_IOU on.
    """
    truths = Truths.of(targets)
    iou = box_iou(truths.boxes[:, None], priors)
    forced = one_each(_closeness(truths.boxes, priors, iou), truths.image)
    wanted = forced | (iou >= MATCH_IOU)
    _, truth = settle(wanted, -iou.masked_fill(forced, _CERTAIN), truths, len(targets.labels))
    return Assignment(truth)


def _closeness(truths: Tensor, priors: Tensor, iou: Tensor) -> Tensor:
    """The IoU [G,N]; where boxes do not meet, the distance of their centres below 0: of those the nearest counts."""
    middle = (truths[:, :2] + truths[:, 2:]) / 2
    distance = torch.cdist(middle, (priors[:, :2] + priors[:, 2:]) / 2)
    return torch.where(iou > 0, iou, -distance)


def one_each(closeness: Tensor, image: Tensor) -> Tensor:
    """The greedy matching of each picture, [G,N] bool: the closest pair first, then the closest of what is left.

    closeness [G,N] of truths and priors, image [G] of each truth. Pairs that are each other's best are part of the
    greedy matching whatever else is, so each round takes all of them at once, in all pictures; two or three rounds are
    usual. Where pairs tie the first truth, then the first prior wins. With fewer priors than truths some get none.
    """
    left = closeness.clone()
    chosen = torch.zeros_like(left, dtype=torch.bool)
    order = torch.arange(len(left), device=left.device)
    pictures = int(image.max()) + 1 if len(image) else 0
    while len(left):
        best, prior = left.max(dim=1)
        rows = image[:, None].expand_as(left)
        highest = left.new_full((pictures, left.shape[1]), -torch.inf).scatter_reduce(0, rows, left, "amax")
        is_best = left == highest[image]
        first = torch.where(is_best, order[:, None], len(left))
        first = first.new_full((pictures, left.shape[1]), len(left)).scatter_reduce(0, rows, first, "amin")
        (settled,) = torch.nonzero((first[image, prior] == order) & (best > -torch.inf), as_tuple=True)
        if not len(settled):
            break
        chosen[settled, prior[settled]] = True
        taken = torch.zeros_like(highest, dtype=torch.bool)
        taken[image[settled], prior[settled]] = True
        left = left.masked_fill(taken[image], -torch.inf)
        left[settled] = -torch.inf
    return chosen
