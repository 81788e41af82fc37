"""Queries (DETR, arXiv:2005.12872): class logits [B,Q,C+1], the background last, and box logits [B,Q,4].

The sigmoids of the box logits are cx cy w h.
"""

from __future__ import annotations

import torch
from torch import Tensor

QUERY_NAMES = ("class_logits", "box_logits")
"""The maps in `preds` and in exported files."""


def decode_query_boxes(logits: Tensor) -> Tensor:
    """Box logits [...,4] to boxes [...,4] xyxy, not clipped."""
    shares = logits.sigmoid()
    half = shares[..., 2:] / 2
    return torch.cat([shares[..., :2] - half, shares[..., :2] + half], dim=logits.dim() - 1)


def query_scores(logits: Tensor) -> Tensor:
    """Class logits [B,Q,C+1], the background last, to scores [B,Q,C] in 0..1."""
    return logits.softmax(dim=2)[:, :, :-1]
