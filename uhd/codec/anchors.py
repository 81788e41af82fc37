"""Anchors on one grid: a map [B,A*(5+q+C),h,w], anchor-major, channels tx ty tw th obj [quality] cls.

Priors are numbered anchor-major too: prior = (anchor * h + row) * w + column.

    cx = (sigmoid(tx) + column) / w        bw = anchor_w * wh_scale_w * softplus(tw)
    cy = (sigmoid(ty) + row) / h           bh = anchor_h * wh_scale_h * softplus(th)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from uhd.codec.cells import EPS, cell_corners, cells_across


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


def prior_places(grid: tuple[int, int], anchors: Tensor, wh_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Of each prior, [N,2] each: column and row of its cell, and its scaled anchor; anchors and wh_scale are [A,2]."""
    cells = cell_corners(grid, anchors.device).repeat(anchors.shape[0], 1)
    return cells, (anchors * wh_scale).unsqueeze(1).expand(-1, grid[0] * grid[1], -1).flatten(0, 1)


def decode_box_logits(logits: Tensor, cells: Tensor, sizes: Tensor, grid: tuple[int, int]) -> Tensor:
    """tx ty tw th [...,4] of priors at cells [...,2] with scaled anchors [...,2] to boxes [...,4] xyxy, not clipped."""
    centres = (logits[..., :2].sigmoid() + cells) / cells_across(grid, logits)
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
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2 * cells_across(grid, boxes) - cells
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
