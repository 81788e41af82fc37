"""What a student learns from the outputs of its teachers: the weighted terms, the adapter of the features, the ramp."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uhd.config import AnchorModelConfig, AnchorSizesConfig, DistillConfig, ModelConfig, flag_of
from uhd.distill import terms
from uhd.distill.views import Preds, View, covers, resample, view_of, with_classes

Terms = dict[str, Tensor]

_log = logging.getLogger("uhd")

_SAME_ANCHOR = 1e-3
_PLACES = ("num_queries", "nanodet_strides")
"""Settings of heads without anchors that say what their candidates stand for."""
NETWORK_ENTRIES = ("anchors", "wh_scale")
"""Entries of `Preds` that belong to the network and not to a picture."""


@dataclass(frozen=True)
class Lesson:
    """What the teachers say of the pictures of a batch.

    preds: raw maps and features of the teacher's network; None without one. features [B,F,h,w]: what the student's
    are to resemble, a backbone's or that network's; None where no term needs them.
    """

    preds: Preds | None
    features: Tensor | None

    def rows(self, rows: slice) -> Lesson:
        """What they say of some of the pictures."""
        preds = self.preds and {
            name: value if name in NETWORK_ENTRIES else value[rows] for name, value in self.preds.items()
        }
        return Lesson(preds, None if self.features is None else self.features[rows])


@dataclass(frozen=True)
class TeacherPlan:
    """How a teacher's network relates to its student's: its section, and its index of each class of the student.

    classes_everywhere: whether the class logits of both are low where nobody is, and not only of no meaning.
    """

    cfg: ModelConfig
    classes: list[int]
    classes_everywhere: bool = False


class Distillation(nn.Module):
    """The terms of distillation, each a mean over the pictures, times its weight and the ramp.

    student: its section. plan: the teacher's network; None with a backbone alone. widths: channels of the student's
    features and of those to resemble, None where no term needs them. total: pictures of the whole run, over which
    --distill-cosine rises. Raises ValueError for a term that this pair of networks does not have.
    """

    seen: Tensor

    def __init__(
        self,
        cfg: DistillConfig,
        student: ModelConfig,
        plan: TeacherPlan | None,
        widths: tuple[int, int] | None,
        total: int,
    ) -> None:
        super().__init__()
        self.cfg = cfg
        self.student = student
        self.plan = plan
        self.total = total
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))
        self.adapter: nn.Module = nn.Identity()
        if cfg.distill_feat and widths is not None and widths[0] != widths[1]:
            self.adapter = nn.Conv2d(*widths, 1, bias=False)
        self.by_place = plan is not None and same_places(student, plan.cfg)
        if plan is not None:
            self._check(plan)

    def ramp(self) -> Tensor:
        """What the weights are multiplied by: 1, or with --distill-cosine from 0 to 1 over the run."""
        if not self.cfg.distill_cosine:
            return torch.ones_like(self.seen)
        progress = (self.seen / max(self.total, 1)).clamp(max=1)
        return (1 - torch.cos(math.pi * progress)) / 2

    def advance(self, count: int) -> None:
        """Notes that so many pictures were learned."""
        self.seen += count

    def forward(self, preds: Preds, lesson: Lesson) -> Terms:
        """The weighted terms of a batch, or of a part of it, each the mean over its pictures."""
        cfg, found = self.cfg, Terms()
        if lesson.preds is not None:
            found |= self._of_network(preds, lesson.preds)
        if cfg.distill_feat:
            assert lesson.features is not None
            found["distill_feat"] = self._features(preds["features"], lesson.features)
        if cfg.feature_distill_weight:
            assert lesson.preds is not None
            found["feature_distill_weight"] = terms.square_difference(preds["features"], lesson.preds["features"])
        ramp = self.ramp().float()
        return {name: value.mean() * getattr(cfg, name) * ramp for name, value in found.items()}

    def _of_network(self, preds: Preds, teacher: Preds) -> Terms:
        """Terms [B] on what the raw maps say."""
        cfg, plan = self.cfg, self.plan
        assert plan is not None
        found = Terms()
        if cfg.distill_weight:
            names = [name for name in teacher if name not in (*NETWORK_ENTRIES, "features")]
            differences = [terms.square_difference(preds[name], teacher[name]) for name in names]
            if "wh_scale" in preds:
                # Without it the same raw sizes would be other boxes.
                differences.append((preds["wh_scale"] - teacher["wh_scale"]).square().mean().expand_as(differences[0]))
            found["distill_weight"] = torch.stack(differences).sum(dim=0)
        if not self._compares_views:
            return found
        mine, theirs, by_place = self._views(preds, teacher)
        if cfg.distill_kl:
            if by_place:
                everywhere = plan.classes_everywhere
                divergence = terms.class_divergence(mine, theirs, cfg.distill_temperature, everywhere=everywhere)
            else:
                divergence = terms.score_divergence(mine, theirs, cfg.distill_temperature)
            found["distill_kl"] = divergence
        if cfg.distill_box_l1:
            found["distill_box_l1"] = terms.box_distance(mine, theirs)
        for name, ours, other in (
            ("distill_obj", mine.obj, theirs.obj),
            ("distill_quality", mine.quality, theirs.quality),
        ):
            if getattr(cfg, name):
                assert ours is not None
                assert other is not None
                # A matched pair says nothing of the places without a person, and a duplicate has no weight.
                weights = None if by_place else theirs.weights
                found[name] = terms.logit_divergence(ours, other, weights)
        return found

    def reads(self, name: str) -> bool:
        """Whether any term reads this entry of the teacher's network."""
        cfg = self.cfg
        if name == "features":
            return bool(cfg.feature_distill_weight)
        return bool(cfg.distill_weight or self._compares_views)

    @property
    def _compares_views(self) -> bool:
        cfg = self.cfg
        return bool(cfg.distill_kl or cfg.distill_box_l1 or cfg.distill_obj or cfg.distill_quality)

    def compares_places(self, preds: Preds, teacher: Preds) -> bool:
        """Whether these maps are compared place by place; else by their boxes."""
        return self.plan is not None and self._correspond(view_of(preds, self.student), view_of(teacher, self.plan.cfg))

    def _correspond(self, mine: View, theirs: View) -> bool:
        if not self.by_place:
            return False
        return mine.grids == theirs.grids if mine.cells is None else covers(theirs, mine.cells[1:])

    def _views(self, preds: Preds, teacher: Preds) -> tuple[View, View, bool]:
        """Both views, their candidates one by one of the same place (then True) or of the same box."""
        assert self.plan is not None
        mine = view_of(preds, self.student)
        theirs = with_classes(view_of(teacher, self.plan.cfg), self.plan.classes)
        if self._correspond(mine, theirs):
            return mine, theirs if mine.cells is None else resample(theirs, mine.cells[1:]), True
        index, theirs = terms.match_by_boxes(mine, theirs)
        return mine.take(index), theirs, False

    def _features(self, mine: Tensor, theirs: Tensor) -> Tensor:
        if mine.shape[2:] != theirs.shape[2:]:
            theirs = F.interpolate(theirs.float(), size=mine.shape[2:], mode="bilinear", antialias=True)
        return terms.feature_distance(self.adapter(mine), theirs)

    def _check(self, plan: TeacherPlan) -> None:
        """ValueError for a weight of a term that this pair does not have, with those that it has whatever its maps."""
        cfg = self.cfg
        defined = {"distill_kl", "distill_box_l1", "distill_feat"}
        if self.student.head == plan.cfg.head == "anchor":
            defined.add("distill_obj")
            if all(getattr(section, "has_quality", False) for section in (self.student, plan.cfg)):
                defined.add("distill_quality")
        if cfg.distill_weight and not self.by_place:
            _log.warning(
                "--distill-weight: teacher and student have other anchors, of which the same maps say other things; "
                "give both the same --anchors, or --distill-kl a weight"
            )
        for name in ("distill_obj", "distill_quality"):
            if getattr(cfg, name) and len(plan.classes) < plan.cfg.num_classes:
                raise ValueError(
                    f"{flag_of(name)}: the teacher's is of its {plan.cfg.num_classes} classes together, the student "
                    f"has {len(plan.classes)}; defined are --distill-kl, --distill-box-l1, --distill-feat"
                )
            if getattr(cfg, name) and name not in defined:
                raise ValueError(
                    f"{flag_of(name)}: not defined between a teacher {_described(plan.cfg)} and a student "
                    f"{_described(self.student)}; defined are {', '.join(map(flag_of, sorted(defined)))}"
                )


def _described(cfg: ModelConfig) -> str:
    """What of a network decides on its terms."""
    if not isinstance(cfg, AnchorModelConfig) or cfg.head != "anchor":
        return f"{cfg.arch} ({cfg.head} head)"
    return f"{cfg.arch} ({cfg.num_anchors} anchors, {'with' if cfg.has_quality else 'no'} quality)"


def same_places(student: ModelConfig, teacher: ModelConfig) -> bool:
    """Whether a candidate of one stands for the same as that of its number in the other (on a grid of any size)."""
    if student.head != teacher.head:
        return False
    if isinstance(student, AnchorSizesConfig) and student.anchor_counts:
        assert isinstance(teacher, AnchorSizesConfig)
        if student.anchor_counts != teacher.anchor_counts:
            return False
        own, other = (_anchors(section) for section in (student, teacher))
        said = {getattr(section, "has_background", None) for section in (student, teacher)}
        return len(said) == 1 and bool((own - other).abs().max() < _SAME_ANCHOR)
    return all(getattr(student, name, None) == getattr(teacher, name, None) for name in _PLACES)


def _anchors(cfg: AnchorSizesConfig) -> Tensor:
    """The anchors [A,2] as the network numbers them."""
    return torch.tensor(cfg.anchors, dtype=torch.float32)
