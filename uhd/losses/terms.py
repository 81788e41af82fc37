"""Elementwise losses that the criteria are made of."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

VFL_ALPHA = 0.75
VFL_GAMMA = 2.0
FOCAL_ALPHA = 2.0
FOCAL_BETA = 4.0
QFL_BETA = 2.0
CLASS_ALPHA = 0.25
CLASS_GAMMA = 2.0


def varifocal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Varifocal loss (arXiv:2008.13367), elementwise: logits and targets (IoU of positives, else 0) of one shape.

    Positives weigh as much as their target, negatives alpha * p^gamma. The weight carries no gradient.
    """
    with torch.no_grad():
        weight = torch.where(targets > 0, targets, VFL_ALPHA * logits.sigmoid().pow(VFL_GAMMA))
    return F.binary_cross_entropy_with_logits(logits, targets, weight, reduction="none")


def penalty_reduced_focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Focal loss of a heat map (arXiv:1904.07850), elementwise: logits and targets (1 at a centre) of one shape.

    -(1-p)^alpha log p at a centre, elsewhere -(1-target)^beta p^alpha log(1-p).
    """
    p = logits.sigmoid()
    at_centre = (1 - p).pow(FOCAL_ALPHA) * F.logsigmoid(logits)
    elsewhere = (1 - targets).pow(FOCAL_BETA) * p.pow(FOCAL_ALPHA) * F.logsigmoid(-logits)
    return -torch.where(targets == 1, at_centre, elsewhere)


def quality_focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Quality focal loss (arXiv:2006.04388), elementwise: logits and targets (IoU of positives, else 0) of one shape.

    |target - p|^beta * BCE(p, target), differentiated as a whole.
    """
    distance = (targets - logits.sigmoid()).abs()
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none") * distance.pow(QFL_BETA)


def distribution_focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Distribution focal loss (arXiv:2006.04388): logits [...,K] and targets [...] in 0 to below K-1, to [...].

    Cross entropy of the two whole numbers beside a target, each by how near it is.
    """
    below = targets.long()
    share = targets - below
    log_p = logits.log_softmax(dim=-1)
    lower, upper = (log_p.gather(-1, index.unsqueeze(-1)).squeeze(-1) for index in (below, below + 1))
    return -(1 - share) * lower - share * upper


def focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Focal loss (arXiv:1708.02002), elementwise: logits and targets (0 or 1) of one shape.

    -alpha (1-p)^gamma log p where the target is 1, -(1-alpha) p^gamma log(1-p) elsewhere.
    """
    p = logits.sigmoid()
    positive = CLASS_ALPHA * (1 - p).pow(CLASS_GAMMA) * F.logsigmoid(logits)
    negative = (1 - CLASS_ALPHA) * p.pow(CLASS_GAMMA) * F.logsigmoid(-logits)
    return -torch.where(targets == 1, positive, negative)
