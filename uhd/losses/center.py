"""The criterion of nets with a CenterNet head (arXiv:1904.07850): hm, off and wh."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uhd import codec
from uhd.config import LossConfig
from uhd.dist import Total, own
from uhd.losses.places import ignored_cells
from uhd.losses.terms import penalty_reduced_focal_loss
from uhd.types import Targets

MIN_IOU = 0.7
"""Cells whose box would still overlap the truth this much are spared a part of the penalty."""


class CenterCriterion(nn.Module):
    """Sums over the batch, divided by its number of centres.

    hm: focal loss of the heat map, whose targets fall off around each centre as a Gaussian. off: L1 of the centres'
    places in their cells. wh: L1 of the sizes, in cells. Two truths in one cell both pull at its offsets and size.
    """

    def __init__(self, cfg: LossConfig) -> None:
        super().__init__()
        self.cfg = cfg

    def forward(self, preds: dict[str, Tensor], targets: Targets, total: Total = own) -> dict[str, Tensor]:
        """Weighted scalar terms, float32, the same keys at every step and each attached to the graph.

        preds holds the heat map [B,C,h,w] (logits), offsets and sizes [B,2,h,w]. total: see `uhd.losses.base`.
        """
        maps = [preds[name] for name in codec.CENTER_NAMES]
        with torch.autocast(maps[0].device.type, enabled=False):
            heatmap, offsets, sizes = (each.float() for each in maps)
            sums, centres = self._sums(heatmap, offsets, sizes, targets)
        count = total(centres).clamp(min=1)
        return {name: value * (getattr(self.cfg, f"loss_weight_{name}") / count) for name, value in sums.items()}

    @staticmethod
    def _sums(heatmap: Tensor, offsets: Tensor, sizes: Tensor, targets: Targets) -> tuple[dict[str, Tensor], Tensor]:
        """The sums over these pictures, and their number of centres."""
        grid = (heatmap.shape[2], heatmap.shape[3])
        image, row = torch.nonzero(targets.labels >= 0, as_tuple=True)
        cells, offset, size = codec.encode_centers(targets.boxes[image, row], grid)
        goal = splat(heatmap.shape, image, targets.labels[image, row], cells, size)
        # A centre teaches also where another truth was taken away.
        taught = ~ignored_cells(targets, grid).view(-1, 1, *grid) | (goal == 1)
        sums = {
            "hm": (penalty_reduced_focal_loss(heatmap, goal) * taught).sum(),
            "off": F.l1_loss(offsets.flatten(2)[image, :, cells], offset, reduction="sum"),
            "wh": F.l1_loss(sizes.flatten(2)[image, :, cells], size, reduction="sum"),
        }
        return sums, offset.new_tensor(len(image))


def splat(shape: torch.Size, image: Tensor, labels: Tensor, cells: Tensor, sizes: Tensor) -> Tensor:
    """The heat map [B,C,h,w] that is taught: 1 at each centre, a Gaussian around it, the larger where two meet.

    image, labels and cells [P] say where the centres are; sizes [P,2] are (w, h) in cells.
    """
    batch, classes, height, width = shape
    corners = codec.cell_corners((height, width), sizes.device)
    distance = corners - torch.stack([cells % width, cells // width], dim=1).unsqueeze(1)
    radius = gaussian_radius(sizes).unsqueeze(1)
    bell = torch.exp(-distance.square().sum(-1) / (2 * ((2 * radius + 1) / 6).square()))
    bell = bell * (distance.abs().amax(-1) <= radius)
    maps = bell.new_zeros(batch * classes, height * width)
    index = (image * classes + labels).unsqueeze(1).expand_as(bell)
    return maps.scatter_reduce(0, index, bell, "amax").view(shape)


def gaussian_radius(sizes: Tensor) -> Tensor:
    """How many whole cells each corner of a box [P,2] (w, h) may be off while the IoU stays MIN_IOU, [P].

    The smallest of three cases (CornerNet, arXiv:1808.01244): both corners moved the same way, inwards, outwards.
    """
    total, area = sizes.sum(-1), sizes.prod(-1)
    moved = _smaller_root(torch.ones_like(total), -total, area * (1 - MIN_IOU) / (1 + MIN_IOU))
    inwards = _smaller_root(4 * torch.ones_like(total), -2 * total, area * (1 - MIN_IOU))
    # Here the roots have opposite signs, and the positive one is meant: of -x it is the smaller, negated.
    outwards = -_smaller_root(4 * MIN_IOU * torch.ones_like(total), -2 * MIN_IOU * total, -area * (1 - MIN_IOU))
    return torch.minimum(torch.minimum(moved, inwards), outwards).clamp(min=0).floor()


def _smaller_root(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The smaller root of a x^2 + b x + c, a > 0."""
    return (-b - (b.square() - 4 * a * c).clamp(min=0).sqrt()) / (2 * a)
