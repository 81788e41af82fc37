"""The best of all candidates that a network's maps hold."""

from __future__ import annotations

import torch
from torch import Tensor

from uhd.types import Detections

SMALLEST_DIFFERENCE = 2.0**-25
"""A share of a float32 value that is less than its distance to the next one."""


def _at_most(size: int, count: int) -> int:
    """The smaller of both; a size that a tracer follows stays one."""
    return size.clamp(max=count) if isinstance(size, Tensor) else min(size, count)


def best_candidates(boxes: Tensor, scores: Tensor, count: int) -> Detections:
    """The best prior-class pairs of each picture, [B,K] by descending score, K = min(count, N*C).

    Where scores (float32, not negative) tie, the first comes first, as in exported files: a uniform picture ties often.
    """
    num_classes = scores.shape[2]
    flat = scores.flatten(1)
    # topk alone picks any of the tied. So later ones are lowered, in float64, by less than float32 values can differ;
    # sorting all candidates instead takes ten times as long.
    lowered = torch.arange(flat.shape[1], device=flat.device).double() * (SMALLEST_DIFFERENCE / flat.shape[1])
    index = (flat.double() * (1 - lowered)).topk(_at_most(flat.shape[1], count), dim=1).indices
    best = flat.gather(1, index)
    rows = torch.div(index, num_classes, rounding_mode="trunc")
    return Detections(boxes.gather(1, rows.unsqueeze(-1).expand(-1, -1, 4)), best, index - rows * num_classes)
