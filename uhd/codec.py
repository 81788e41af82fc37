"""Raw maps to boxes and back: the one place that knows how an anchor map is laid out.

While a graph is traced for export, torch gives sizes as tensors. They are used as they come, never turned into plain
numbers, so that a graph can be exported whose height and width stay open.

A raw map is [B,A*(5+q+C),h,w], anchor-major, channels tx ty tw th obj [quality] cls. Priors are
numbered anchor-major too: prior = (anchor * h + row) * w + column.

    cx = (sigmoid(tx) + column) / w        bw = anchor_w * wh_scale_w * softplus(tw)
    cy = (sigmoid(ty) + row) / h           bh = anchor_h * wh_scale_h * softplus(th)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from uhd.types import Detections

EPS = 1e-6


@dataclass(frozen=True)
class AnchorLayout:
    """How the channels of an anchor map are divided."""

    num_anchors: int
    num_classes: int
    has_quality: bool


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


def _at_most(size: int, count: int) -> int:
    """The smaller of both; a size that a tracer follows stays one."""
    return size.clamp(max=count) if isinstance(size, Tensor) else min(size, count)


def best_candidates(boxes: Tensor, scores: Tensor, count: int) -> Detections:
    """The best prior-class pairs of each picture, [B,K] by descending score, K = min(count, N*C)."""
    num_classes = scores.shape[2]
    flat = scores.flatten(1)
    best, index = flat.topk(_at_most(flat.shape[1], count), dim=1)
    rows = torch.div(index, num_classes, rounding_mode="trunc")
    return Detections(boxes.gather(1, rows.unsqueeze(-1).expand(-1, -1, 4)), best, index - rows * num_classes)
