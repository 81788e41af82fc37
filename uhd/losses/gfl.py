"""The criterion of nets that tell the distances of a box's sides (Generalized Focal Loss, arXiv:2006.04388)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from uhd import codec
from uhd.assigners import DynamicSoftLabelAssigner, Predictions
from uhd.boxes import box_similarity
from uhd.config import LossConfig
from uhd.dist import Total, own
from uhd.losses.places import ignored_cells
from uhd.losses.terms import distribution_focal_loss, quality_focal_loss
from uhd.types import Assignment, Targets


class _Sums(NamedTuple):
    """Of one head: the terms' sums over the batch, by name, and the scores of its positives, summed."""

    terms: dict[str, Tensor]
    weight: Tensor


class GFLCriterion(nn.Module):
    """cls: quality focal loss of all places, divided by the batch's positives. iou and dfl: GIoU and distribution focal
    loss of the positives, weighted by their scores and divided by the sum of these.

    Where preds hold raw maps of an auxiliary head too, those decide which place learns which truth, for both heads, and
    have the same terms, with "aux_" before their names.
    """

    def __init__(self, cfg: LossConfig, assigner: DynamicSoftLabelAssigner, num_classes: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.assigner = assigner
        self.num_classes = num_classes

    def forward(self, preds: dict[str, Tensor], targets: Targets, total: Total = own) -> dict[str, Tensor]:
        """Weighted scalar terms, float32, the same keys at every step and each attached to the graph.

        preds holds a map [B,C+4*BINS,h,w] of each grid, in training besides one of each grid of the auxiliary head.
        total: see `uhd.losses.base`.
        """
        with torch.autocast(targets.boxes.device.type, enabled=False):
            heads = {
                prefix: codec.split_grids(maps, self.num_classes)
                for prefix in ("", codec.AUX)
                if (maps := codec.grids_in(preds, prefix))
            }
            # The last one is the auxiliary head's, where there is one: it learns faster, so its labels are better.
            assignment = self._assign(list(heads.values())[-1], targets)
            sums = {prefix: self._sums(places, assignment, targets) for prefix, places in heads.items()}
        positives = (assignment.truth >= 0).sum().float()
        # One message for all: each process calls total once, whatever it has found.
        divisors = total(torch.stack([positives, *(head.weight for head in sums.values())])).clamp(min=1)
        found = {}
        for (prefix, head), weight in zip(sums.items(), divisors[1:], strict=True):
            for name, value in head.terms.items():
                divisor = divisors[0] if name == "cls" else weight
                found[f"{prefix}{name}"] = value * (getattr(self.cfg, f"loss_weight_{name}") / divisor)
        return found

    @torch.no_grad()
    def _assign(self, places: codec.Places, targets: Targets) -> Assignment:
        boxes = codec.decode_distances(places.sides, places.points, places.cells)
        return self.assigner(Predictions(boxes, places.cls.sigmoid()), places.points, places.cells, targets)

    @staticmethod
    def _sums(places: codec.Places, assignment: Assignment, targets: Targets) -> _Sums:
        assert assignment.quality is not None
        image, place = torch.nonzero(assignment.truth >= 0, as_tuple=True)
        row = assignment.truth[image, place]
        quality = torch.zeros_like(places.cls)
        quality[image, place, targets.labels[image, row]] = assignment.quality[image, place]
        taken_away = torch.cat([ignored_cells(targets, grid) for grid in places.grids], dim=1)
        taught = ~taken_away | (assignment.truth >= 0)

        sides, truths = places.sides[image, place], targets.boxes[image, row]
        points, cells = places.points[place], places.cells[place]
        _, giou = box_similarity(codec.decode_distances(sides, points, cells), truths, "giou")
        distances = codec.encode_distances(truths, points, cells)
        weight = places.cls.detach()[image, place].amax(dim=1).sigmoid()
        terms = {
            "cls": (quality_focal_loss(places.cls, quality) * taught.unsqueeze(-1)).sum(),
            "iou": ((1 - giou) * weight).sum(),
            "dfl": (distribution_focal_loss(sides, distances).mean(dim=1) * weight).sum(),
        }
        return _Sums(terms, weight.sum())
