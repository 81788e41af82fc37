"""Tiny SSD: a small body whose maps, each of half the resolution of the one before, are the levels of an SSD head."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uhd.config import TinySSDConfig
from uhd.models.base import Preds
from uhd.models.heads import SSDDetector
from uhd.models.layers import ACTIVATIONS, Style, norm


class TinySSD(SSDDetector):
    """The paper's Fire modules (arXiv:1802.06488), or plain convolutions, below the heads of the levels.

    Beside the paper each halving of the Fire modules is padded to ceil(side / 2), so that a 64x64 picture has all
    levels. Those of the plain convolutions leave out a last odd row, as published.
    """

    tag = "tinyssd"

    def __init__(self, cfg: TinySSDConfig) -> None:
        super().__init__(cfg)
        style = Style(cfg.activation, cfg.use_batchnorm)
        levels_of = _fire_levels if cfg.tinyssd_body == "fire" else _conv_levels
        # Coarser levels that are not asked for are never made.
        levels = list(itertools.islice(levels_of(style), cfg.num_grids))
        self.levels = nn.ModuleList(body for body, _ in levels)
        self.add_head([width for _, width in levels])

    def forward(self, images: Tensor) -> Preds:
        """[B,3,H,W] to the raw maps and "features" [B,F,H/8,W/8]."""
        maps = [images]
        for level in self.levels:
            maps.append(level(maps[-1]))
        return self.preds_of(maps[1:])


Level = tuple[nn.Module, int]
"""From the map of the level before to this one's, and its channels."""


class Conv(nn.Sequential):
    """Convolution with "same" padding, BN if the style has it, activation; with a bias beside BN too, as published."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, style: Style, *, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2),
            *norm(out_channels, style),
            ACTIVATIONS[style.activation](),
        )


class Fire(nn.Module):
    """A 1x1 convolution that squeezes, and on it 1x1 and 3x3 ones side by side (SqueezeNet, arXiv:1602.07360)."""

    def __init__(self, in_channels: int, squeeze: int, one: int, three: int, style: Style) -> None:
        super().__init__()
        self.squeeze = Conv(in_channels, squeeze, 1, style)
        self.one = Conv(squeeze, one, 1, style)
        self.three = Conv(squeeze, three, 3, style)

    def forward(self, x: Tensor) -> Tensor:
        """[B,in,h,w] to [B,one+three,h,w]."""
        x = self.squeeze(x)
        return torch.cat([self.one(x), self.three(x)], dim=1)


class HalvedDown(nn.Module):
    """The largest of each 2x2 pixels; of an odd side the last one is left out, but not the only one."""

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,h,w] to [B,C,max(h // 2, 1),max(w // 2, 1)]."""
        height, width = x.shape[2], x.shape[3]
        halves = F.max_pool2d(x, 2, ceil_mode=True)
        # 1 // side is 1 for the only one: arithmetic stays in a traced graph, where a choice would not.
        return halves[:, :, : height // 2 + 1 // height, : width // 2 + 1 // width]


_STEM = 57
_FIRES: tuple[tuple[tuple[tuple[int, int, int], ...], ...], ...] = (
    (((15, 49, 53), (15, 54, 52)), ((29, 92, 94), (29, 90, 83))),
    (((44, 166, 161), (45, 155, 146), (49, 163, 171), (25, 29, 54)),),
    (((37, 45, 56),),),
    (((38, 41, 44),),),
)
"""Of each level its runs of modules, a pooling before each: squeeze, 1x1 and 3x3 channels of each module."""
_EXTRAS = ((51, 46), (55, 85))
"""Of each further level: channels of the 1x1 and of the strided 3x3 convolution."""


def _fire_levels(style: Style) -> Iterator[Level]:
    """Six levels, of strides 8 to 256."""
    width = _STEM
    layers: list[nn.Module] = [Conv(3, _STEM, 3, style, stride=2)]
    for runs in _FIRES:
        for run in runs:
            layers.append(nn.MaxPool2d(3, stride=2, padding=1))
            for squeeze, one, three in run:
                layers.append(Fire(width, squeeze, one, three, style))
                width = one + three
        yield nn.Sequential(*layers), width
        layers = []
    for narrow, wide in _EXTRAS:
        yield nn.Sequential(Conv(width, narrow, 1, style), Conv(narrow, wide, 3, style, stride=2)), wide
        width = wide


def _conv_levels(style: Style) -> Iterator[Level]:
    """Five levels: of strides 8 to 64, and the whole picture."""

    def block(in_channels: int, out_channels: int) -> nn.Sequential:
        convs = Conv(in_channels, out_channels, 3, style), Conv(out_channels, out_channels, 3, style)
        return nn.Sequential(*convs, HalvedDown())

    yield nn.Sequential(block(3, 16), block(16, 32), block(32, 64)), 64
    yield block(64, 128), 128
    for _ in range(2):
        yield block(128, 128), 128
    yield nn.AdaptiveMaxPool2d(1), 128
