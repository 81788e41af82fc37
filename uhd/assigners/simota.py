"""SimOTA (YOLOX, arXiv:2107.08430): as many priors a truth as its best IoUs add up to, the cheapest first."""

from __future__ import annotations

import torch

from uhd.assigners.base import NEAR_CELLS, Predictions, PriorGrid, Truths, centre_distances, centres_inside, settle
from uhd.boxes import box_iou
from uhd.types import Assignment, Targets

IOU_WEIGHT = 3.0
MIN_LOG = -100.0
"""Logarithm of a score of 0 (or 1, for the absent)."""
OUTSIDE_COST = 1e5
"""Added where a prior is not both inside the truth and near its centre."""


class SimOTAAssigner:
    """cost = BCE(score, one-hot class) summed over classes + 3 * -ln IoU + 1e5 unless inside and near."""

    def __init__(self, topk: int) -> None:
        self.topk = topk

    @torch.no_grad()
    def __call__(self, predictions: Predictions, grid: PriorGrid, targets: Targets) -> Assignment:
        """A prior wanted by two truths stays with the one it costs less."""
        batch, priors = predictions.boxes.shape[:2]
        truths = Truths.of(targets)
        inside, near = centres_inside(truths, grid), centre_distances(truths, grid) < NEAR_CELLS
        candidate, dearer = grid.priors_of(inside | near), grid.priors_of(~(inside & near))
        iou = box_iou(truths.boxes[:, None], predictions.boxes[truths.image]) * candidate
        cost = self._class_cost(predictions.scores, truths) - IOU_WEIGHT * torch.log(iou + 1e-8)
        cost = (cost + OUTSIDE_COST * dearer).masked_fill(~candidate, torch.inf)
        limit = min(self.topk, priors)
        wanted_count = iou.topk(limit, dim=1).values.sum(dim=1).floor().long().clamp(min=1)
        lowest, index = cost.topk(limit, dim=1, largest=False)
        chosen = (torch.arange(limit, device=cost.device) < wanted_count[:, None]) & lowest.isfinite()
        wanted = torch.zeros_like(candidate).scatter(1, index, chosen)
        _, truth = settle(wanted, cost, truths, batch)
        return Assignment(truth)

    @staticmethod
    def _class_cost(scores: torch.Tensor, truths: Truths) -> torch.Tensor:
        """Summed BCE of each prior's scores against each truth's one-hot class, [G,N]."""
        # Written out: torch's function raises on scores of nan, whose step is to be skipped.
        absent = -torch.log1p(-scores).clamp(min=MIN_LOG)
        present = -torch.log(scores).clamp(min=MIN_LOG)
        swap = (present - absent).transpose(1, 2)[truths.image, truths.labels]
        return absent.sum(dim=-1)[truths.image] + swap
