"""The heads of NanoDet: one for each grid in the network, and the larger one, shared by all grids, of training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from uhd.codec import BINS
from uhd.models.heads import start_unlikely
from uhd.models.layers import ACTIVATIONS, DWSep, Style

SIDES = 4
GROUPS = 32
INITIAL_DEVIATION = 0.01


def _start(head: nn.Module, classes: nn.Conv2d, num_classes: int) -> None:
    """Small kernels, so that all distances start near the middle of their bins, and classes that are unlikely."""
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=INITIAL_DEVIATION)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    assert classes.bias is not None
    start_unlikely(classes.bias[:num_classes])


class PlusHead(nn.Module):
    """[B,c,h,w] to class and box logits [B,C+4*BINS,h,w]: two depthwise-separable convolutions and one 1x1 for all."""

    def __init__(self, channels: int, num_classes: int, kernel: int, style: Style) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*(DWSep(channels, channels, style, kernel=kernel) for _ in range(2)))
        self.out = nn.Conv2d(channels, num_classes + SIDES * BINS, 1)
        _start(self, self.out, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.out(self.trunk(x))


class PlusPlusHead(nn.Module):
    """The same with the box logits behind a depthwise-separable convolution of their own."""

    def __init__(self, channels: int, num_classes: int, kernel: int, style: Style) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*(DWSep(channels, channels, style, kernel=kernel) for _ in range(2)))
        self.classes = nn.Conv2d(channels, num_classes, 1)
        self.boxes = nn.Sequential(
            DWSep(channels, channels, style, kernel=kernel), nn.Conv2d(channels, SIDES * BINS, 1)
        )
        _start(self, self.classes, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B,c,h,w] to class and box logits [B,C+4*BINS,h,w]."""
        x = self.trunk(x)
        return torch.cat([self.classes(x), self.boxes(x)], dim=1)


HEADS: dict[str, type[PlusHead] | type[PlusPlusHead]] = {"s": PlusHead, "m": PlusHead, "l": PlusPlusHead}
"""The head of each grid, by --nanodet-size."""


class AuxiliaryHead(nn.Module):
    """One head for all grids: dense 3x3 convolutions, apart for classes and boxes, and a scale for each grid's boxes.

    in_channels: of the maps. width and depth: of the convolutions. grids: their number.
    """

    def __init__(
        self, in_channels: int, num_classes: int, width: int, depth: int, *, grids: int, activation: str
    ) -> None:
        super().__init__()
        self.class_tower = _tower(in_channels, width, depth, activation)
        self.box_tower = _tower(in_channels, width, depth, activation)
        self.classes = nn.Conv2d(width, num_classes, 3, padding=1)
        self.boxes = nn.Conv2d(width, SIDES * BINS, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(grids))
        _start(self, self.classes, num_classes)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """[B,F,h,w] each to class and box logits [B,C+4*BINS,h,w] each."""
        return [
            torch.cat([self.classes(self.class_tower(x)), self.boxes(self.box_tower(x)) * scale], dim=1)
            for x, scale in zip(maps, self.scales, strict=True)
        ]


def _tower(in_channels: int, width: int, depth: int, activation: str) -> nn.Sequential:
    """3x3 convolutions with group norm: unlike batch norm it does not care that the maps of all grids pass through."""
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [
            nn.Conv2d(width if index else in_channels, width, 3, padding=1, bias=False),
            nn.GroupNorm(GROUPS, width),
            ACTIVATIONS[activation](),
        ]
    return nn.Sequential(*layers)
