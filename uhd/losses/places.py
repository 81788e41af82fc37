"""Where a grid is not taught: in the place of truths that augmentation took away."""

from __future__ import annotations

import torch
from torch import Tensor

from uhd.codec import cell_corners
from uhd.types import IGNORED, Targets


def ignored_cells(targets: Targets, grid: tuple[int, int]) -> Tensor:
    """Cells of a grid (h, w) in the place of a truth that augmentation took away, [B,h*w] bool.

    The place is each cell whose centre the truth covers, and the cell that holds the truth's centre.
    """
    height, width = grid
    image, row = torch.nonzero(targets.labels == IGNORED, as_tuple=True)
    boxes = targets.boxes[image, row] * targets.boxes.new_tensor([width, height, width, height])
    centres = cell_corners(grid, boxes.device) + 0.5
    covered = ((centres >= boxes[:, None, :2]) & (centres <= boxes[:, None, 2:])).all(dim=-1)
    middle = ((boxes[:, :2] + boxes[:, 2:]) / 2).long()
    cell = middle[:, 1].clamp(0, height - 1) * width + middle[:, 0].clamp(0, width - 1)
    covered = covered.scatter(1, cell[:, None], True)
    counts = boxes.new_zeros(targets.labels.shape[0], height * width).index_add_(0, image, covered.float())
    return counts > 0
