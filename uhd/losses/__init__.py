"""The criteria by the kind of head."""

from __future__ import annotations

from torch import nn

from uhd.assigners import build_assigner
from uhd.codec import AnchorLayout
from uhd.config import AssignConfig, LossConfig, ModelConfig, UltraTinyODConfig
from uhd.losses.anchor import AnchorCriterion, AnchorScoring

__all__ = ["AnchorCriterion", "AnchorScoring", "build_criterion"]


def build_criterion(model: ModelConfig, raw_name: str, loss: LossConfig, assign: AssignConfig) -> nn.Module:
    """The criterion for a model section; raw_name is the raw map's name in `preds`."""
    assert isinstance(model, UltraTinyODConfig)
    layout = AnchorLayout(model.num_anchors, model.num_classes, model.has_quality)
    scoring = AnchorScoring(raw_name, layout, model.use_iou_aware_head, model.quality_power)
    return AnchorCriterion(loss, build_assigner(assign), scoring)
