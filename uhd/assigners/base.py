"""What an assigner sees, and the steps that all of them share.

The truths of a batch are worked on as one flat list of G rows, each against the N priors of its own
picture: [G,N] holds a tenth of what the padded [B,M,N] would.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from uhd.codec import cell_corners
from uhd.types import Assignment, Targets

NEAR_CELLS = 2.5
"""Cells around a truth's centre whose priors may learn it (max-norm, strict)."""


@dataclass(frozen=True)
class PriorGrid:
    """Where the priors are: anchors [A,2] (w, h), normalised, on a grid of (h, w) cells."""

    anchors: Tensor
    shape: tuple[int, int]

    def centres(self) -> Tensor:
        """Cell centres (x, y), in cells, [h*w,2], row by row."""
        return cell_corners(self.shape, self.anchors.device) + 0.5

    def priors_of(self, cells: Tensor) -> Tensor:
        """What holds for each cell, [G,h*w], for each prior, [G,N] anchor-major."""
        return cells.repeat(1, len(self.anchors))

    def size(self, like: Tensor) -> Tensor:
        """(w, h) in cells, as a tensor beside `like`."""
        return torch.tensor([self.shape[1], self.shape[0]], dtype=like.dtype, device=like.device)


class Predictions(NamedTuple):
    """What the net says of each prior, detached: boxes [B,N,4], scores [B,N,C] as they are ranked in the end."""

    boxes: Tensor
    scores: Tensor


class Truths(NamedTuple):
    """The real truths of a batch as flat rows: image [G], row in Targets [G], boxes [G,4], labels [G]."""

    image: Tensor
    row: Tensor
    boxes: Tensor
    labels: Tensor

    @classmethod
    def of(cls, targets: Targets) -> Truths:
        """Without padding and ignored rows."""
        image, row = torch.nonzero(targets.labels >= 0, as_tuple=True)
        return cls(image, row, targets.boxes[image, row], targets.labels[image, row])


class Assigner(Protocol):
    """Decides which priors learn which truth."""

    def __call__(self, predictions: Predictions, grid: PriorGrid, targets: Targets) -> Assignment:
        """Gradient-free; the result's truth is [B,N]."""
        ...


def centres_inside(truths: Truths, grid: PriorGrid) -> Tensor:
    """Whether each cell's centre lies inside each truth, strictly: [G,h*w]."""
    x, y = grid.centres().unbind(dim=1)
    corners = truths.boxes * grid.size(truths.boxes).repeat(2)
    left, top, right, bottom = corners.unsqueeze(1).unbind(dim=2)
    return (x > left) & (x < right) & (y > top) & (y < bottom)


def centre_distances(truths: Truths, grid: PriorGrid) -> Tensor:
    """Max-norm distance of each cell's centre from each truth's centre, in cells: [G,h*w]."""
    x, y = grid.centres().unbind(dim=1)
    middle = (truths.boxes[:, :2] + truths.boxes[:, 2:]) / 2 * grid.size(truths.boxes)
    offset_x, offset_y = (x - middle[:, :1]).abs(), (y - middle[:, 1:]).abs()
    return torch.maximum(offset_x, offset_y)


def settle(wanted: Tensor, cost: Tensor, truths: Truths, batch: int) -> tuple[Tensor, Tensor]:
    """A prior wanted by several truths of its picture goes to the one of lowest cost (the first, where tied).

    wanted [G,N] bool, cost [G,N]. Returns the pairs that remain [G,N] bool and Assignment.truth [B,N].
    """
    count, priors = wanted.shape
    cost = cost.masked_fill(~wanted, torch.inf)
    image = truths.image[:, None].expand(-1, priors)
    lowest = cost.new_full((batch, priors), torch.inf).scatter_reduce(0, image, cost, "amin")
    winner = wanted & (cost == lowest[truths.image])
    order = torch.arange(count, device=cost.device)[:, None].expand(-1, priors)
    order = order.masked_fill(~winner, count)
    first = order.new_full((batch, priors), count).scatter_reduce(0, image, order, "amin")
    kept = winner & (order == first[truths.image])
    truth = torch.cat([truths.row, truths.row.new_full((1,), -1)])[first]
    return kept, truth
