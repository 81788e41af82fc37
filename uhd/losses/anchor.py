"""The criterion of nets with an anchor head: box, obj, cls and, where there is such a branch, quality."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uhd import codec
from uhd.assigners import Assigner, Predictions, PriorGrid
from uhd.boxes import box_similarity
from uhd.config import LossConfig
from uhd.dist import Total, own
from uhd.losses.places import ignored_cells
from uhd.losses.terms import varifocal_loss
from uhd.types import Assignment, Targets


@dataclass(frozen=True)
class AnchorScoring:
    """How a net's raw map is laid out and scored."""

    layout: codec.AnchorLayout
    iou_aware: bool
    quality_power: float


class AnchorCriterion(nn.Module):
    """Sums over the batch, divided by its positives (by the sum of their quality where the assigner sets one).

    Dividing by the number of priors instead would leave objectness and quality almost without gradient:
    a picture has hundreds of priors and a handful of positives.
    """

    def __init__(self, cfg: LossConfig, assigner: Assigner, scoring: AnchorScoring) -> None:
        super().__init__()
        self.cfg = cfg
        self.assigner = assigner
        self.scoring = scoring

    def forward(self, preds: dict[str, Tensor], targets: Targets, total: Total = own) -> dict[str, Tensor]:
        """Weighted scalar terms, float32, the same keys at every step and each attached to the graph.

        preds holds the raw map [B,A*(5+q+C),h,w], anchors [A,2] and wh_scale [A,2]. total: see `uhd.losses.base`.
        """
        with torch.autocast(preds["anchors"].device.type, enabled=False):
            return self._terms(preds, targets, total)

    def _terms(self, preds: dict[str, Tensor], targets: Targets, total: Total) -> dict[str, Tensor]:
        scoring = self.scoring
        priors = codec.split_anchor_map(preds[scoring.layout.raw_name].float(), scoring.layout)
        anchors, wh_scale = preds["anchors"].float(), preds["wh_scale"].float()
        cells, sizes = codec.prior_places(priors.grid, anchors, wh_scale)
        grid = PriorGrid(anchors.detach(), priors.grid)
        with torch.no_grad():
            candidates = codec.decode_box_logits(priors.box, cells, sizes, priors.grid)
            scores = codec.anchor_scores(priors, scoring.iou_aware, scoring.quality_power)
        assignment = self.assigner(Predictions(candidates, scores), grid, targets)

        image, prior = torch.nonzero(assignment.truth >= 0, as_tuple=True)
        row = assignment.truth[image, prior]
        # Decoded once more with gradients: the positives are few, and nothing else has any.
        boxes = codec.decode_box_logits(priors.box[image, prior], cells[prior], sizes[prior], priors.grid)
        iou, similarity = box_similarity(boxes, targets.boxes[image, row], self.cfg.iou_loss)
        quality, weight, positives = self._positives(assignment, iou.detach(), image, prior)
        normaliser = total(positives).clamp(min=1)
        # Background is 0; the positives' IoU (or what stands for it) is what a quality branch learns.
        quality_map = torch.zeros_like(priors.obj).index_put((image, prior), quality)
        positive_map = torch.zeros_like(priors.obj).index_put((image, prior), torch.ones_like(quality))
        taught = ~grid.priors_of(ignored_cells(targets, priors.grid)) | (assignment.truth >= 0)

        has_quality = priors.quality is not None
        sums = {
            "box": ((1 - similarity) * weight).sum(),
            "obj": _masked_bce(priors.obj, quality_map if has_quality else positive_map, taught),
            "cls": self._class_sum(priors.cls, targets.labels[image, row], image, prior, quality, taught),
        }
        if priors.quality is not None:
            sums["quality"] = _masked_bce(priors.quality, quality_map, taught)
        return {name: value * (getattr(self.cfg, f"loss_weight_{name}") / normaliser) for name, value in sums.items()}

    @staticmethod
    def _positives(assignment: Assignment, iou: Tensor, image: Tensor, prior: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quality target [P] and box weight [P] of the positives, and how many they count as."""
        if assignment.quality is None:
            return iou.clamp(0, 1), torch.ones_like(iou), iou.new_tensor(len(iou))
        quality = assignment.quality[image, prior]
        return quality, quality, quality.sum()

    def _class_sum(
        self, logits: Tensor, labels: Tensor, image: Tensor, prior: Tensor, quality: Tensor, taught: Tensor
    ) -> Tensor:
        """BCE of the positives against their one-hot class, or varifocal loss of all priors."""
        if self.cfg.anchor_cls_loss == "vfl":
            target = torch.zeros_like(logits).index_put((image, prior, labels), quality)
            return (varifocal_loss(logits, target) * taught.unsqueeze(-1)).sum()
        one_hot = F.one_hot(labels, logits.shape[-1]).float()
        return F.binary_cross_entropy_with_logits(logits[image, prior], one_hot, reduction="sum")


def _masked_bce(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    return (F.binary_cross_entropy_with_logits(logits, targets, reduction="none") * mask).sum()
