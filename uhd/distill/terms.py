"""Distances between what a student and a teacher say; each is 0 where both say the same.

Every function gives one value a picture, [B], so that a batch can be learned in parts. Nothing flows back to the
teacher: its tensors carry no gradient.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from uhd.boxes import box_iou
from uhd.distill.views import View

_EPS = 1e-6
_SMALLEST = 1e-30
_SHORTEST = 1e-5
"""Length below which a vector of features is not brought to length 1: its gradient would overflow half precision."""
MATCHED = 30
"""Candidates of the teacher that are matched by their boxes where places do not correspond."""
_CANDIDATES = 100
_SAME_OBJECT = 0.5


def bernoulli_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of independent probabilities, from logits of one shape; times temperature squared.

    The square keeps the size of the gradient (Hinton et al., arXiv:1503.02531, section 2).
    """
    student, teacher = student / temperature, teacher / temperature
    target = teacher.sigmoid()
    cross = F.binary_cross_entropy_with_logits(student, target, reduction="none")
    own = F.binary_cross_entropy_with_logits(teacher, target, reduction="none")
    return (cross - own) * temperature**2


def softmax_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) [...] of the classes' softmax, from logits [...,C]; times temperature squared."""
    log_s, log_t = (logits.div(temperature).log_softmax(dim=-1) for logits in (student, teacher))
    return F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(dim=-1) * temperature**2


def class_divergence(student: View, teacher: View, temperature: float, *, everywhere: bool = False) -> Tensor:
    """Of views whose candidates correspond one by one: the divergence of the classes.

    A softmax is a statement on each query, so all count alike. Class logits of anchors say something only where there
    is somebody, so priors count by the teacher's score; everywhere: not those that learned to be low at all other
    places (varifocal loss). Of these, of a heat map, and of levels without objectness, every place counts; the sum is
    divided by the sum of the teacher's scores.
    """
    if student.is_softmax:
        divergence = softmax_kl(student.cls, teacher.cls, temperature)
        if not student.grids:
            return divergence.mean(dim=1)
    else:
        divergence = bernoulli_kl(student.cls, teacher.cls, temperature).sum(dim=2)
    if everywhere or student.obj is None:
        return divergence.sum(dim=1) / teacher.weights.sum(dim=1).clamp(min=1)
    return weighted_mean(divergence, teacher.weights)


def score_divergence(student: View, teacher: View, temperature: float) -> Tensor:
    """Of views of any heads, one by one: the divergence of what decoding ranks by, weighted by the teacher's score."""
    ours, theirs = _logit(student.scores), _logit(teacher.scores)
    return weighted_mean(bernoulli_kl(ours, theirs, temperature).sum(dim=2), teacher.weights)


def _logit(scores: Tensor) -> Tensor:
    """Logits of scores in 0..1, with a gradient where a product of sigmoids is small too: there people are missed."""
    return scores.clamp(min=_SMALLEST).log() - torch.log1p(-scores.clamp(max=1 - _EPS))


def logit_divergence(student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    """Of logits [B,N] (objectness, quality): the divergences' mean by weights [B,N].

    Without weights every place counts, and the sum is divided by the sum of the teacher's probabilities.
    """
    divergence = bernoulli_kl(student, teacher)
    if weights is not None:
        return weighted_mean(divergence, weights)
    return divergence.sum(dim=1) / teacher.sigmoid().sum(dim=1).clamp(min=1)


def box_distance(student: View, teacher: View) -> Tensor:
    """The mean over candidates of the boxes' L1 distance (sum of four coordinates), weighted by the teacher's score."""
    return weighted_mean((student.boxes - teacher.boxes).abs().sum(dim=2), teacher.weights)


def feature_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Of features [B,F,h,w]: the mean over cells of the squared distance of the channels' vectors, each of length 1."""
    student, teacher = (F.normalize(features.float(), dim=1, eps=_SHORTEST) for features in (student, teacher))
    return (student - teacher).square().sum(dim=1).mean(dim=(1, 2))


def square_difference(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean square difference of two maps [B,...]."""
    return (student.float() - teacher.float()).square().flatten(1).mean(dim=1)


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Means [B] of values [B,N] by weights [B,N] >= 0; weights of less than one candidate in sum count as one's."""
    return (values * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


@torch.no_grad()
def match_by_boxes(student: View, teacher: View) -> tuple[Tensor, View]:
    """Candidates of both that stand for the same objects: indices [B,M] of the student's, and the teacher's as a view.

    Of the teacher the M best, less each that overlaps a better one (it keeps its place, with no weight). Each gets the
    candidate of the student that is nearest by L1 distance less IoU.
    """
    count = min(_CANDIDATES, teacher.scores.shape[1])
    best = teacher.take(teacher.weights.topk(count, dim=1).indices)
    overlaps = box_iou(best.boxes[:, :, None], best.boxes[:, None]).triu(diagonal=1)
    alone = overlaps.amax(dim=1) <= _SAME_OBJECT
    best = replace(best, ranking=best.ranking * alone.unsqueeze(-1))
    chosen = best.take(best.weights.topk(min(MATCHED, count), dim=1).indices)
    cost = torch.cdist(chosen.boxes, student.boxes, p=1) - box_iou(chosen.boxes[:, :, None], student.boxes[:, None])
    return cost.argmin(dim=2), chosen
