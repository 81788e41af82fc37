"""The classic rule: one prior a truth, by shape."""

from __future__ import annotations

import torch

from uhd.assigners.base import Predictions, PriorGrid, Truths, settle
from uhd.types import Assignment, Targets


class BestAnchorAssigner:
    """Each truth goes to the best-fitting anchor (IoU of sizes) of the cell that holds its centre."""

    @torch.no_grad()
    def __call__(self, predictions: Predictions, grid: PriorGrid, targets: Targets) -> Assignment:
        """Two truths on one prior: the one that fits the anchor better keeps it."""
        batch, priors = predictions.boxes.shape[:2]
        truths = Truths.of(targets)
        height, width = grid.shape
        size = truths.boxes[:, 2:] - truths.boxes[:, :2]
        inter = torch.minimum(size[:, None], grid.anchors).prod(dim=-1)
        union = size.prod(dim=-1)[:, None] + grid.anchors.prod(dim=-1) - inter
        fit, anchor = (inter / union.clamp(min=1e-12)).max(dim=1)
        middle = (truths.boxes[:, :2] + truths.boxes[:, 2:]) / 2 * grid.size(truths.boxes)
        column = middle[:, 0].long().clamp(0, width - 1)
        row = middle[:, 1].long().clamp(0, height - 1)
        prior = (anchor * height + row) * width + column
        wanted = torch.zeros(len(fit), priors, dtype=torch.bool, device=fit.device)
        wanted.scatter_(1, prior[:, None], True)
        _, truth = settle(wanted, -fit[:, None].expand(-1, priors), truths, batch)
        return Assignment(truth)
