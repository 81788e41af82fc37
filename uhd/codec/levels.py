"""Anchors on several grids, the levels (SSD, arXiv:1512.02325).

For each level a map of class logits [B,n*K,h,w] and one of offsets [B,n*4,h,w], both anchor-major, of n anchors (w, h)
at the centre of each cell. K is the number of classes, and one more, the last, where a softmax knows the background.
Priors are numbered level by level, and in a level anchor-major.

    cx = (column + 0.5) / w + anchor_w * tx / 10        bw = anchor_w * exp(tw / 5)
    cy = (row + 0.5) / h + anchor_h * ty / 10           bh = anchor_h * exp(th / 5)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from uhd.codec.cells import EPS, cell_corners, cells_across
from uhd.codec.queries import query_scores

Value = TypeVar("Value")

CENTRE_SCALE, SIZE_SCALE = 10.0, 5.0
"""What the offsets are multiplied by, so that their spread is about 1."""
MAX_LOG_RATIO = 4.0
"""A decoded box is at most e^4 = 55 times as large or as small as its prior: no logit overflows."""


@dataclass(frozen=True)
class LevelLayout:
    """How the maps of several levels are divided: anchors a cell of each level, and what the class logits are."""

    counts: tuple[int, ...]
    num_classes: int
    has_background: bool

    @property
    def outputs(self) -> int:
        """Class logits of a prior."""
        return self.num_classes + self.has_background

    @property
    def raw_names(self) -> tuple[str, ...]:
        """The maps' names in `preds` and in exported files: two for each level, and all levels' anchors."""
        maps = (f"{kind}_{level}" for level in range(len(self.counts)) for kind in ("cls", "box"))
        return (*maps, "anchors")


class LevelPriors(NamedTuple):
    """The maps of all levels taken apart: cls [B,N,K] and box [B,N,4] (tx ty tw th); places [N,4] are cx cy w h.

    grids are the (h, w) of the levels.
    """

    cls: Tensor
    box: Tensor
    places: Tensor
    grids: tuple[tuple[int, int], ...]


def split_levels(preds: Mapping[str, Tensor], layout: LevelLayout) -> LevelPriors:
    """The maps of `preds` to one row a prior, float32; preds also holds the anchors [A,2] of all levels."""
    maps = [preds[name].float() for name in layout.raw_names]
    anchors = torch.split(maps.pop(), list(layout.counts))
    grids = tuple((each.shape[2], each.shape[3]) for each in maps[1::2])
    rows = [
        each.reshape(each.shape[0], count, -1, grid[0] * grid[1]).transpose(2, 3).flatten(1, 2)
        for each, count, grid in zip(maps, _twice(layout.counts), _twice(grids), strict=True)
    ]
    places = [level_places(grid, each) for grid, each in zip(grids, anchors, strict=True)]
    return LevelPriors(torch.cat(rows[::2], dim=1), torch.cat(rows[1::2], dim=1), torch.cat(places), grids)


def _twice(values: tuple[Value, ...]) -> list[Value]:
    """Each value for both maps of its level."""
    return [value for value in values for _ in range(2)]


def level_places(grid: tuple[int, int], anchors: Tensor) -> Tensor:
    """cx cy w h [n*h*w,4] of the priors of one level with anchors [n,2], anchor-major."""
    centres = (cell_corners(grid, anchors.device) + 0.5) / cells_across(grid, anchors)
    sizes = anchors.unsqueeze(1).expand(-1, grid[0] * grid[1], -1).flatten(0, 1)
    return torch.cat([centres.repeat(anchors.shape[0], 1), sizes], dim=1)


def decode_offsets(offsets: Tensor, places: Tensor) -> Tensor:
    """tx ty tw th [...,4] of priors cx cy w h [...,4] to boxes [...,4] xyxy, not clipped to the picture."""
    centres = places[..., :2] + places[..., 2:] * offsets[..., :2] / CENTRE_SCALE
    half = places[..., 2:] * (offsets[..., 2:] / SIZE_SCALE).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() / 2
    return torch.cat([centres - half, centres + half], dim=offsets.dim() - 1)


def encode_offsets(boxes: Tensor, places: Tensor) -> Tensor:
    """The reverse of `decode_offsets` for boxes [P,4] xyxy and their priors [P,4]: tx ty tw th [P,4]."""
    centres, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    ratio = (sizes / places[:, 2:]).clamp(min=EPS)
    return torch.cat([(centres - places[:, :2]) / places[:, 2:] * CENTRE_SCALE, ratio.log() * SIZE_SCALE], dim=1)


def level_scores(cls: Tensor, layout: LevelLayout) -> Tensor:
    """Class logits [B,N,K] of levels to scores [B,N,C] in 0..1."""
    return query_scores(cls) if layout.has_background else cls.sigmoid()
