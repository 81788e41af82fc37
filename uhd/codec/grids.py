"""Distances of the sides on several grids (Generalized Focal Loss, arXiv:2006.04388).

For each grid, finest first, a map [B,C+4*BINS,h,w]: class logits and then, side by side in the order left, top, right,
bottom, a distribution over the distances 0 to BINS-1, in cells. Places are numbered grid by grid, each row by row; the
point of a place is the middle of its cell.

    distance = sum over k of k * softmax(logits)_k
    x1 = (column + 0.5 - left) / w         x2 = (column + 0.5 + right) / w
    y1 = (row + 0.5 - top) / h             y2 = (row + 0.5 + bottom) / h
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from uhd.codec.cells import cell_corners, cells_across

BINS = 8
"""Distances that a side of a box can have, 0 to 7 cells."""
FARTHEST = BINS - 1.1
"""The largest distance that is taught: between the last two bins, of which the last is to have a part."""
AUX = "aux_"
"""What the names of maps begin with that only training has."""


class Places(NamedTuple):
    """The maps of all grids, one row a place: cls [B,N,C] and sides [B,N,4,BINS], both logits.

    points [N,2] are the places' (x, y) and cells [N,2] their cells' (w, h), both normalised; grids are (h, w) each.
    """

    cls: Tensor
    sides: Tensor
    points: Tensor
    cells: Tensor
    grids: list[tuple[int, int]]


def grid_names(strides: Sequence[int], prefix: str = "") -> tuple[str, ...]:
    """Names of the maps of grids of these strides, finest first, in `preds` and in exported files."""
    return tuple(f"{prefix}grid{stride}" for stride in strides)


def grids_in(preds: dict[str, Tensor], prefix: str = "") -> list[Tensor]:
    """The maps of all grids whose names have the prefix, finest first, in float32; empty where there are none."""
    start = f"{prefix}grid"
    strides = sorted(int(name.removeprefix(start)) for name in preds if name.startswith(start))
    return [preds[name].float() for name in grid_names(strides, prefix)]


def split_grids(maps: Sequence[Tensor], num_classes: int) -> Places:
    """Maps [B,C+4*BINS,h,w], finest first, to their places."""
    grids = [(x.shape[2], x.shape[3]) for x in maps]
    rows = torch.cat([x.flatten(2) for x in maps], dim=2).transpose(1, 2)
    across = [cells_across(grid, maps[0]) for grid in grids]
    corners = [cell_corners(grid, maps[0].device) for grid in grids]
    points = torch.cat([(corner + 0.5) / size for corner, size in zip(corners, across, strict=True)])
    cells = torch.cat([torch.ones_like(corner) / size for corner, size in zip(corners, across, strict=True)])
    sides = rows[:, :, num_classes:].reshape(rows.shape[0], rows.shape[1], 4, BINS)
    return Places(rows[:, :, :num_classes], sides, points, cells, grids)


def decode_distances(logits: Tensor, points: Tensor, cells: Tensor) -> Tensor:
    """Boxes [...,4] xyxy, not clipped, of sides [...,4,BINS] of places at points [...,2] with cells [...,2]."""
    bins = torch.arange(BINS, dtype=logits.dtype, device=logits.device)
    distances = (logits.softmax(dim=logits.dim() - 1) * bins).sum(dim=logits.dim() - 1)
    low, high = points - distances[..., :2] * cells, points + distances[..., 2:] * cells
    return torch.cat([low, high], dim=distances.dim() - 1)


def encode_distances(boxes: Tensor, points: Tensor, cells: Tensor) -> Tensor:
    """Distances [P,4] in cells, 0 to FARTHEST, of the sides of boxes [P,4] xyxy from points [P,2] with cells [P,2]."""
    distances = torch.cat([(points - boxes[:, :2]) / cells, (boxes[:, 2:] - points) / cells], dim=1)
    return distances.clamp(0, FARTHEST)
