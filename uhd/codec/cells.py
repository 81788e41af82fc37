"""Where the cells of a grid lie."""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-6
"""The smallest ratio of sizes, or distance from a cell's border, that has a finite logit."""


def cell_corners(grid: tuple[int, int], device: torch.device) -> Tensor:
    """Column and row of each cell, [h*w,2] float, row by row."""
    rows, columns = torch.meshgrid(
        torch.arange(grid[0], device=device), torch.arange(grid[1], device=device), indexing="ij"
    )
    return torch.stack([columns, rows], dim=-1).flatten(0, 1).float()


def cells_across(grid: tuple[int, int], like: Tensor) -> Tensor:
    """Columns and rows of a grid, [2], of the type and on the device of `like`."""
    return torch.stack([torch.as_tensor(side, dtype=like.dtype, device=like.device) for side in reversed(grid)])
