"""The criterion of nets whose queries each find one truth: cls, l1 and iou (DETR, arXiv:2005.12872)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from uhd import codec
from uhd.assigners.base import Predictions
from uhd.assigners.hungarian import centre_form, match_queries
from uhd.boxes import box_iou, box_similarity
from uhd.config import LossConfig
from uhd.dist import Total, own
from uhd.losses.base import SeparableCriterion
from uhd.types import IGNORED, Targets

BACKGROUND_WEIGHT = 0.1
IGNORED_IOU = 0.5
"""Overlap with a truth that augmentation took away, from which a query is not taught that nobody is there."""


class QueryCriterion(SeparableCriterion):
    """Sums over the batch, divided by its real truths.

    A batch may be taken in parts: the terms of the whole are the parts' terms, each times its own
    `normaliser` and divided by that of the whole, added up.
    """

    def __init__(self, cfg: LossConfig, num_classes: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.num_classes = num_classes

    def forward(self, preds: dict[str, Tensor], targets: Targets, total: Total = own) -> dict[str, Tensor]:
        """Weighted scalar terms, float32, the same keys at every step and each attached to the graph.

        preds holds class_logits [B,Q,C+1], the background last, and box_logits [B,Q,4]. total: see `uhd.losses.base`.
        """
        class_logits, box_logits = (preds[name] for name in codec.QUERY_NAMES)
        with torch.autocast(box_logits.device.type, enabled=False):
            sums = self._sums(class_logits.float(), box_logits.float(), targets)
        normaliser = self.normaliser(targets, total)
        return {name: value * (getattr(self.cfg, f"loss_weight_{name}") / normaliser) for name, value in sums.items()}

    def normaliser(self, targets: Targets, total: Total = own) -> Tensor:
        """Number of real truths, at least 1: what the sums over the batch are divided by."""
        return total((targets.labels >= 0).sum().float()).clamp(min=1)

    def _sums(self, class_logits: Tensor, box_logits: Tensor, targets: Targets) -> dict[str, Tensor]:
        candidates = codec.decode_query_boxes(box_logits.detach())
        image, query, row = match_queries(Predictions(candidates, codec.query_scores(class_logits.detach())), targets)
        classes = targets.labels.new_full(class_logits.shape[:2], self.num_classes)
        classes[image, query] = targets.labels[image, row]
        weight = BACKGROUND_WEIGHT * (~in_ignored_place(candidates, targets)).float()
        weight[image, query] = 1.0
        entropy = F.cross_entropy(class_logits.flatten(0, 1), classes.flatten(), reduction="none")

        # Where nothing is matched these are sums of nothing: 0, and still attached to the box head.
        matched, truths = box_logits[image, query], targets.boxes[image, row]
        _, giou = box_similarity(codec.decode_query_boxes(matched), truths, "giou")
        return {
            "cls": (entropy * weight.flatten()).sum(),
            "l1": (matched.sigmoid() - centre_form(truths)).abs().sum(),
            "iou": (1 - giou).sum(),
        }


def in_ignored_place(boxes: Tensor, targets: Targets) -> Tensor:
    """Which boxes [B,Q,4] lie where a truth of their picture was that augmentation took away, [B,Q] bool."""
    overlap = box_iou(boxes[:, :, None], targets.boxes[:, None])
    return ((overlap >= IGNORED_IOU) & (targets.labels == IGNORED)[:, None]).any(dim=-1)
