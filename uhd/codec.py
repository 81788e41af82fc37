"""Raw maps to boxes and back: the one place that knows how they are laid out.

While a graph is traced for export, torch gives sizes as tensors. They are used as they come, never turned into plain
numbers, so that a graph can be exported whose height and width stay open.

Anchors: a map [B,A*(5+q+C),h,w], anchor-major, channels tx ty tw th obj [quality] cls. Priors are
numbered anchor-major too: prior = (anchor * h + row) * w + column.

    cx = (sigmoid(tx) + column) / w        bw = anchor_w * wh_scale_w * softplus(tw)
    cy = (sigmoid(ty) + row) / h           bh = anchor_h * wh_scale_h * softplus(th)

Centres (CenterNet, arXiv:1904.07850): a heat map of logits [B,C,h,w], offsets [B,2,h,w] (x, y) and sizes [B,2,h,w]
(w, h), the last two in cells; cell = row * w + column.

    cx = (column + offset_x) / w           bw = max(size_w, 0) / w
    cy = (row + offset_y) / h              bh = max(size_h, 0) / h

Queries (DETR, arXiv:2005.12872): class logits [B,Q,C+1], the background last, and box logits [B,Q,4], whose sigmoids
are cx cy w h.

Levels (Generalized Focal Loss, arXiv:2006.04388): for each of several grids, finest first, a map [B,C+4*BINS,h,w]:
class logits and then, side by side in the order left, top, right, bottom, a distribution over the distances 0 to
BINS-1, in cells. Places are numbered grid by grid, each row by row; the point of a place is the middle of its cell.

    distance = sum over k of k * softmax(logits)_k
    x1 = (column + 0.5 - left) / w         x2 = (column + 0.5 + right) / w
    y1 = (row + 0.5 - top) / h             y2 = (row + 0.5 + bottom) / h
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from uhd.types import Detections

EPS = 1e-6
SMALLEST_DIFFERENCE = 2.0**-25
"""A share of a float32 value that is less than its distance to the next one."""
CENTER_NAMES = ("heatmap", "offset", "size")
"""The maps of centres in `preds` and in exported files."""
QUERY_NAMES = ("class_logits", "box_logits")
"""The maps of queries there."""
BINS = 8
"""Distances that a side of a box on a level can have, 0 to 7 cells."""
FARTHEST = BINS - 1.1
"""The largest distance that is taught: between the last two bins, of which the last is to have a part."""
AUX = "aux_"
"""What the names of levels begin with that only training has."""


@dataclass(frozen=True)
class AnchorLayout:
    """How the channels of an anchor map are divided."""

    num_anchors: int
    num_classes: int
    has_quality: bool

    @property
    def raw_name(self) -> str:
        """The map's name in `preds` and in exported files."""
        return f"txtywh_obj{'_quality' if self.has_quality else ''}_cls"

    @property
    def channels(self) -> int:
        """Channels of the map."""
        return self.num_anchors * (5 + self.has_quality + self.num_classes)


class Priors(NamedTuple):
    """An anchor map taken apart: box [B,N,4] (tx ty tw th), obj [B,N], quality [B,N] or None, cls [B,N,C].

    All are logits; grid is (h, w).
    """

    box: Tensor
    obj: Tensor
    quality: Tensor | None
    cls: Tensor
    grid: tuple[int, int]


def split_anchor_map(raw: Tensor, layout: AnchorLayout) -> Priors:
    """[B,A*(5+q+C),h,w] to its parts, one row a prior."""
    height, width = raw.shape[2:]
    batch = raw.shape[0]
    # The N values of a channel stay side by side in memory: what follows is arithmetic channel by channel.
    channels = raw.reshape(batch, layout.num_anchors, -1, height * width).permute(2, 0, 1, 3).flatten(2)
    quality = channels[5] if layout.has_quality else None
    cls = channels[-layout.num_classes :].permute(1, 2, 0)
    return Priors(channels[:4].permute(1, 2, 0), channels[4], quality, cls, (height, width))


def cell_corners(grid: tuple[int, int], device: torch.device) -> Tensor:
    """Column and row of each cell, [h*w,2] float, row by row."""
    rows, columns = torch.meshgrid(
        torch.arange(grid[0], device=device), torch.arange(grid[1], device=device), indexing="ij"
    )
    return torch.stack([columns, rows], dim=-1).flatten(0, 1).float()


def prior_places(grid: tuple[int, int], anchors: Tensor, wh_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Of each prior, [N,2] each: column and row of its cell, and its scaled anchor; anchors and wh_scale are [A,2]."""
    cells = cell_corners(grid, anchors.device).repeat(anchors.shape[0], 1)
    return cells, (anchors * wh_scale).unsqueeze(1).expand(-1, grid[0] * grid[1], -1).flatten(0, 1)


def _cells_across(grid: tuple[int, int], like: Tensor) -> Tensor:
    """Columns and rows of a grid, [2], of the type and on the device of `like`."""
    return torch.stack([torch.as_tensor(side, dtype=like.dtype, device=like.device) for side in reversed(grid)])


def decode_box_logits(logits: Tensor, cells: Tensor, sizes: Tensor, grid: tuple[int, int]) -> Tensor:
    """tx ty tw th [...,4] of priors at cells [...,2] with scaled anchors [...,2] to boxes [...,4] xyxy, not clipped."""
    centres = (logits[..., :2].sigmoid() + cells) / _cells_across(grid, logits)
    half = F.softplus(logits[..., 2:]) * sizes / 2
    # Joined along the first dimension, so that the layout of `split_anchor_map` stays.
    last = logits.dim() - 1  # counted from the front: torch's exporter writes a negative one as it is
    return torch.cat([(centres - half).movedim(last, 0), (centres + half).movedim(last, 0)]).movedim(0, last)


def decode_anchor_boxes(priors: Priors, anchors: Tensor, wh_scale: Tensor) -> Tensor:
    """Boxes [B,N,4] xyxy, not clipped to the picture; anchors and wh_scale are [A,2] (w, h)."""
    return decode_box_logits(priors.box, *prior_places(priors.grid, anchors, wh_scale), priors.grid)


def encode_anchor_boxes(boxes: Tensor, cells: Tensor, sizes: Tensor, grid: tuple[int, int]) -> Tensor:
    """The reverse of `decode_box_logits` for boxes [P,4] xyxy: tx ty tw th [P,4].

    cells [P,2] are the columns and rows of their priors, sizes [P,2] the scaled anchors. A centre
    outside its cell is brought to the cell's border.
    """
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2 * _cells_across(grid, boxes) - cells
    ratio = ((boxes[:, 2:] - boxes[:, :2]) / sizes).clamp(min=EPS)
    # The inverse of softplus, written so that large ratios do not overflow.
    return torch.cat([torch.logit(centres, eps=EPS), ratio + torch.log(-torch.expm1(-ratio))], dim=1)


def anchor_scores(priors: Priors, iou_aware: bool, quality_power: float) -> Tensor:
    """Scores [B,N,C] in 0..1: obj * quality^p * cls, without obj for an IoU-aware head."""
    scores = priors.cls.sigmoid()
    if priors.quality is not None:
        quality = priors.quality.sigmoid()
        scores = scores * (quality if quality_power == 1 else quality.pow(quality_power)).unsqueeze(-1)
    if not iou_aware:
        scores = scores * priors.obj.sigmoid().unsqueeze(-1)
    return scores


def decode_centers(offsets: Tensor, sizes: Tensor) -> Tensor:
    """Offsets and sizes [B,2,h,w], in cells, to the boxes of all cells [B,h*w,4] xyxy, not clipped."""
    grid = offsets.shape[2:]
    across = _cells_across((grid[0], grid[1]), offsets)
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
    across = _cells_across(grid, boxes)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2 * across
    corners = torch.minimum(centres.floor().clamp(min=0), across - 1)
    cells = corners[:, 1].long() * grid[1] + corners[:, 0].long()
    return cells, centres - corners, (boxes[:, 2:] - boxes[:, :2]) * across


def decode_query_boxes(logits: Tensor) -> Tensor:
    """Box logits [...,4] to boxes [...,4] xyxy, not clipped."""
    shares = logits.sigmoid()
    half = shares[..., 2:] / 2
    return torch.cat([shares[..., :2] - half, shares[..., :2] + half], dim=logits.dim() - 1)


def query_scores(logits: Tensor) -> Tensor:
    """Class logits [B,Q,C+1], the background last, to scores [B,Q,C] in 0..1."""
    return logits.softmax(dim=2)[:, :, :-1]


class Places(NamedTuple):
    """The maps of all levels, one row a place: cls [B,N,C] and sides [B,N,4,BINS], both logits.

    points [N,2] are the places' (x, y) and cells [N,2] their cells' (w, h), both normalised; grids are (h, w) each.
    """

    cls: Tensor
    sides: Tensor
    points: Tensor
    cells: Tensor
    grids: list[tuple[int, int]]


def level_names(strides: Sequence[int], prefix: str = "") -> tuple[str, ...]:
    """Names of the maps of levels of these strides, finest first, in `preds` and in exported files."""
    return tuple(f"{prefix}level{stride}" for stride in strides)


def levels_in(preds: dict[str, Tensor], prefix: str = "") -> list[Tensor]:
    """The maps of all levels whose names have the prefix, finest first, in float32; empty where there are none."""
    start = f"{prefix}level"
    strides = sorted(int(name.removeprefix(start)) for name in preds if name.startswith(start))
    return [preds[name].float() for name in level_names(strides, prefix)]


def split_levels(maps: Sequence[Tensor], num_classes: int) -> Places:
    """Maps [B,C+4*BINS,h,w], finest first, to their places."""
    grids = [(x.shape[2], x.shape[3]) for x in maps]
    rows = torch.cat([x.flatten(2) for x in maps], dim=2).transpose(1, 2)
    across = [_cells_across(grid, maps[0]) for grid in grids]
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
