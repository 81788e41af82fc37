"""Centres (CenterNet, arXiv:1904.07850): three maps of one grid.

A heat map of logits [B,C,h,w], offsets [B,2,h,w] (x, y) and sizes [B,2,h,w] (w, h), the last two in cells;
cell = row * w + column.

    cx = (column + offset_x) / w           bw = max(size_w, 0) / w
    cy = (row + offset_y) / h              bh = max(size_h, 0) / h
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from uhd.codec.cells import cell_corners, cells_across

CENTER_NAMES = ("heatmap", "offset", "size")
"""The maps in `preds` and in exported files."""


def decode_centers(offsets: Tensor, sizes: Tensor) -> Tensor:
    """Offsets and sizes [B,2,h,w], in cells, to the boxes of all cells [B,h*w,4] xyxy, not clipped."""
    grid = offsets.shape[2:]
    across = cells_across((grid[0], grid[1]), offsets)
    centres = (cell_corners((grid[0], grid[1]), offsets.device) + offsets.flatten(2).transpose(1, 2)) / across
    half = sizes.flatten(2).transpose(1, 2).clamp(min=0) / (2 * across)
    return torch.cat([centres - half, centres + half], dim=2)


def center_scores(heatmap: Tensor) -> Tensor:
    """Logits [B,C,h,w] to scores [B,h*w,C] in 0..1: 0 for a cell that one of its eight neighbours surpasses."""
    # Peaks of the logits, not of the scores: these are equal where the sigmoid saturates.
    is_peak = heatmap == F.max_pool2d(heatmap, 3, stride=1, padding=1)
    return (heatmap.sigmoid() * is_peak).flatten(2).transpose(1, 2)


def encode_centers(boxes: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """The reverse of `decode_centers` for boxes [P,4] xyxy: cells [P], and offsets and sizes [P,2] in cells."""
    across = cells_across(grid, boxes)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2 * across
    corners = torch.minimum(centres.floor().clamp(min=0), across - 1)
    cells = corners[:, 1].long() * grid[1] + corners[:, 0].long()
    return cells, centres - corners, (boxes[:, 2:] - boxes[:, :2]) * across
