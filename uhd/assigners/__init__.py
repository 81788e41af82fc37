"""The assigners by name."""

from __future__ import annotations

from uhd.assigners.base import Assigner, Predictions, PriorGrid, Truths
from uhd.assigners.best_anchor import BestAnchorAssigner
from uhd.assigners.dynamic_soft_label import DynamicSoftLabelAssigner
from uhd.assigners.max_iou import assign_by_iou
from uhd.assigners.simota import SimOTAAssigner
from uhd.assigners.task_aligned import TaskAlignedAssigner
from uhd.config import AssignConfig

__all__ = [
    "Assigner",
    "BestAnchorAssigner",
    "DynamicSoftLabelAssigner",
    "Predictions",
    "PriorGrid",
    "SimOTAAssigner",
    "TaskAlignedAssigner",
    "Truths",
    "assign_by_iou",
    "build_assigner",
]


def build_assigner(cfg: AssignConfig) -> Assigner:
    """The assigner that the section names."""
    if cfg.anchor_assigner == "legacy":
        return BestAnchorAssigner()
    if cfg.anchor_assigner == "simota":
        return SimOTAAssigner(cfg.simota_topk)
    return TaskAlignedAssigner()
