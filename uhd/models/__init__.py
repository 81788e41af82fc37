"""The architectures by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from uhd.config import ModelConfig
from uhd.models.base import Auxiliary, Detector, Preds, SplitDetector, count_macs, count_parameters, fold_batchnorm
from uhd.models.cnn import build_cnn
from uhd.models.nanodet import NanoDet
from uhd.models.tinyssd import TinySSD
from uhd.models.transformer import Transformer
from uhd.models.ultratinyod import UltraTinyOD

ARCHS: dict[str, Callable[[Any], Detector]] = {
    "cnn": build_cnn,
    "nanodet": NanoDet,
    "transformer": Transformer,
    "ultratinyod": UltraTinyOD,
    "tinyssd": TinySSD,
}
"""What makes a network of its section of the config, by the architecture's name."""

__all__ = [
    "ARCHS",
    "Auxiliary",
    "Detector",
    "Preds",
    "SplitDetector",
    "build_model",
    "count_macs",
    "count_parameters",
    "fold_batchnorm",
]


def build_model(cfg: ModelConfig) -> Detector:
    """The network that a model section describes, with fresh weights from torch's global generator."""
    return ARCHS[cfg.arch](cfg)
