"""The criterion of nets with levels (SSD, arXiv:1512.02325): box and cls."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uhd import codec
from uhd.assigners import assign_by_iou
from uhd.config import LossConfig
from uhd.dist import Total, own
from uhd.losses.terms import focal_loss
from uhd.types import IGNORED, PADDING, Targets

NEGATIVES = 3
"""Background priors that are learned for each positive of a picture; without one as many as with one."""


class SSDCriterion(nn.Module):
    """Sums over the batch, divided by its positives.

    box: smooth L1 of the positives' offsets. cls: of all priors the focal loss, or, where the layout knows the
    background, the cross entropy of the positives and of each picture's hardest negatives.
    """

    def __init__(self, cfg: LossConfig, layout: codec.LevelLayout) -> None:
        super().__init__()
        self.cfg = cfg
        self.layout = layout

    def forward(self, preds: dict[str, Tensor], targets: Targets, total: Total = own) -> dict[str, Tensor]:
        """Weighted scalar terms, float32, the same keys at every step and each attached to the graph.

        preds holds the maps of `codec.LevelLayout` and anchors [A,2]. total: see `uhd.losses.base`.
        """
        with torch.autocast(preds["anchors"].device.type, enabled=False):
            sums, positives = self._sums(codec.split_levels(preds, self.layout), targets)
        normaliser = total(positives).clamp(min=1)
        return {name: value * (getattr(self.cfg, f"loss_weight_{name}") / normaliser) for name, value in sums.items()}

    def _sums(self, priors: codec.LevelPriors, targets: Targets) -> tuple[dict[str, Tensor], Tensor]:
        """The sums over these pictures, and their number of positives."""
        half = priors.places[:, 2:] / 2
        boxes = torch.cat([priors.places[:, :2] - half, priors.places[:, :2] + half], dim=1)
        truth = assign_by_iou(boxes, targets).truth
        positive = truth >= 0
        taught = positive | (assign_by_iou(boxes, _ignored(targets)).truth < 0)
        image, prior = torch.nonzero(positive, as_tuple=True)
        row = truth[image, prior]
        goal = codec.encode_offsets(targets.boxes[image, row], priors.places[prior])
        classes = targets.labels.gather(1, truth.clamp(min=0)).masked_fill(~positive, self.layout.num_classes)
        cls = _mined if self.layout.has_background else _focal
        sums = {
            "box": F.smooth_l1_loss(priors.box[image, prior], goal, reduction="sum"),
            "cls": cls(priors.cls, classes, positive, taught),
        }
        return sums, positive.sum().float()


def _ignored(targets: Targets) -> Targets:
    """The truths that augmentation took away, as truths: the priors that would learn one are not taught background."""
    labels = torch.where(targets.labels == IGNORED, 0, PADDING)
    return dataclasses.replace(targets, labels=labels)


def _focal(logits: Tensor, classes: Tensor, _: Tensor, taught: Tensor) -> Tensor:
    """The sum of the focal loss; logits [B,N,C], classes [B,N] (C is the background), taught [B,N]."""
    one_hot = F.one_hot(classes, logits.shape[2] + 1)[..., :-1]
    return (focal_loss(logits, one_hot) * taught.unsqueeze(-1)).sum()


def _mined(logits: Tensor, classes: Tensor, positive: Tensor, taught: Tensor) -> Tensor:
    """The sum of the cross entropy of positives and hardest negatives; logits [B,N,C+1], the rest [B,N]."""
    entropy = F.cross_entropy(logits.flatten(0, 1), classes.flatten(), reduction="none").view_as(classes)
    with torch.no_grad():
        hardness = entropy.masked_fill(positive | ~taught, -torch.inf)
        rank = hardness.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        most = NEGATIVES * positive.sum(dim=1, keepdim=True).clamp(min=1)
        chosen = positive | ((rank < most) & (hardness > -torch.inf))
    return (entropy * chosen).sum()
