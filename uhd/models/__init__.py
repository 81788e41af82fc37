"""The architectures by name."""

from __future__ import annotations

from uhd.config import ModelConfig
from uhd.models.base import Detector, Preds, count_macs, count_parameters, fold_batchnorm
from uhd.models.ultratinyod import UltraTinyOD

ARCHS: dict[str, type[Detector]] = {"ultratinyod": UltraTinyOD}

__all__ = ["ARCHS", "Detector", "Preds", "build_model", "count_macs", "count_parameters", "fold_batchnorm"]


def build_model(cfg: ModelConfig) -> Detector:
    """The network that a model section describes, with fresh weights from torch's global generator."""
    return ARCHS[cfg.arch](cfg)
