"""Task-aligned assignment (TOOD, arXiv:2108.07755): priors that score well and overlap well learn a truth."""

from __future__ import annotations

import torch

from uhd.assigners.base import NEAR_CELLS, Predictions, PriorGrid, Truths, centre_distances, centres_inside, settle
from uhd.boxes import box_iou
from uhd.types import Assignment, Targets

SCORE_POWER = 0.5
IOU_POWER = 4
POSITIVES = 10
CENTRE_CELLS = 1.0
"""Priors this close to the centre are candidates even outside the truth: small truths hold no cell centre."""


class TaskAlignedAssigner:
    """alignment = score^0.5 * IoU^4; the ten best candidates of a truth learn it."""

    @torch.no_grad()
    def __call__(self, predictions: Predictions, grid: PriorGrid, targets: Targets) -> Assignment:
        """A prior wanted twice goes to the higher IoU; quality is the alignment, scaled a truth to its best IoU."""
        batch, priors = predictions.boxes.shape[:2]
        truths = Truths.of(targets)
        distance = centre_distances(truths, grid)
        cells = (centres_inside(truths, grid) & (distance < NEAR_CELLS)) | (distance < CENTRE_CELLS)
        candidate = grid.priors_of(cells)
        iou = box_iou(truths.boxes[:, None], predictions.boxes[truths.image])
        score = predictions.scores.transpose(1, 2)[truths.image, truths.labels]
        alignment = score.pow(SCORE_POWER) * iou.pow(IOU_POWER)
        best, index = alignment.masked_fill(~candidate, -1).topk(min(POSITIVES, priors), dim=1)
        wanted = torch.zeros_like(candidate).scatter(1, index, best >= 0)
        kept, truth = settle(wanted, -iou, truths, batch)
        alignment, iou = alignment * kept, iou * kept
        scaled = alignment / alignment.amax(dim=1, keepdim=True).clamp(min=1e-30) * iou.amax(dim=1, keepdim=True)
        # Each prior has at most one truth left, so the sum over truths is a selection.
        quality = scaled.new_zeros(batch, priors).index_add_(0, truths.image, scaled)
        return Assignment(truth, quality)
