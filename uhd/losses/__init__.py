"""The criteria by the kind of head."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from uhd.assigners import DynamicSoftLabelAssigner, build_assigner
from uhd.codec import AnchorLayout, LevelLayout
from uhd.config import AnchorModelConfig, AssignConfig, Head, LossConfig, ModelConfig, TinySSDConfig
from uhd.losses.anchor import AnchorCriterion, AnchorScoring
from uhd.losses.base import SeparableCriterion
from uhd.losses.center import CenterCriterion
from uhd.losses.gfl import GFLCriterion
from uhd.losses.query import QueryCriterion
from uhd.losses.ssd import SSDCriterion

__all__ = [
    "CRITERIA",
    "AnchorCriterion",
    "AnchorScoring",
    "CenterCriterion",
    "GFLCriterion",
    "QueryCriterion",
    "SSDCriterion",
    "SeparableCriterion",
    "build_criterion",
]


def _anchor(model: ModelConfig, loss: LossConfig, assign: AssignConfig) -> nn.Module:
    assert isinstance(model, AnchorModelConfig)
    layout = AnchorLayout(model.num_anchors, model.num_classes, model.has_quality)
    scoring = AnchorScoring(layout, model.scores_without_obj, model.quality_power)
    return AnchorCriterion(loss, build_assigner(assign), scoring)


def _center(_: ModelConfig, loss: LossConfig, __: AssignConfig) -> nn.Module:
    return CenterCriterion(loss)


def _query(model: ModelConfig, loss: LossConfig, _: AssignConfig) -> nn.Module:
    return QueryCriterion(loss, model.num_classes)


def _gfl(model: ModelConfig, loss: LossConfig, _: AssignConfig) -> nn.Module:
    return GFLCriterion(loss, DynamicSoftLabelAssigner(), model.num_classes)


def _ssd(model: ModelConfig, loss: LossConfig, _: AssignConfig) -> nn.Module:
    assert isinstance(model, TinySSDConfig)
    return SSDCriterion(loss, LevelLayout(model.anchor_counts, model.num_classes, model.has_background))


CRITERIA: dict[Head, Callable[[ModelConfig, LossConfig, AssignConfig], nn.Module]] = {
    "anchor": _anchor,
    "center": _center,
    "query": _query,
    "gfl": _gfl,
    "ssd": _ssd,
}


def build_criterion(model: ModelConfig, loss: LossConfig, assign: AssignConfig) -> nn.Module:
    """The criterion for the head of a model section."""
    return CRITERIA[model.head](model, loss, assign)
