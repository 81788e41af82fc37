"""UltraTinyResNet, and the ways of fusing the stages of a backbone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uhd.config import CNNConfig
from uhd.models.layers import ACTIVATIONS, ConvBNAct, Style


class ChannelShuffle(nn.Module):
    """Deals the channels of the groups out in turn, so that the next grouped convolution sees all of them."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """[B,F,h,w] to the same shape; F is a multiple of the groups."""
        return x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)  # type: ignore[no-untyped-call]


class ResidualBlock(nn.Module):
    """Two 3x3 of one width around which the input is added; no projection."""

    def __init__(self, channels: int, style: Style) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            ConvBNAct(channels, channels, 3, style), ConvBNAct(channels, channels, 3, style, act=False)
        )
        self.act = ACTIVATIONS[style.activation]()

    def forward(self, x: Tensor) -> Tensor:
        """[B,F,h,w] to the same shape."""
        return self.act(x + self.blocks(x))


def _factors(count: int) -> list[int]:
    """How much larger than the last map the maps before it are, finest first."""
    return [2 ** (count - index) for index in range(count)]


class SkipSum(nn.Module):
    """Adds every earlier map to the last one, averaged to its size and projected to its width.

    The maps halve from one to the next, so the sizes of the pools are known from their number.
    """

    def __init__(self, widths: Sequence[int], out_channels: int, style: Style) -> None:
        super().__init__()
        self.projections = nn.ModuleList(
            nn.Sequential(nn.AvgPool2d(factor), ConvBNAct(width, out_channels, 1, style, act=False))
            for width, factor in zip(widths, _factors(len(widths)), strict=True)
        )

    def forward(self, earlier: Sequence[Tensor], last: Tensor) -> Tensor:
        """Maps [B,width,h*factor,w*factor], finest first, and the last one [B,F,h,w] to [B,F,h,w]."""
        for projection, x in zip(self.projections, earlier, strict=True):
            last = last + projection(x)
        return last


def _pooled(width: int, factor: int, out_channels: int, style: Style) -> tuple[nn.Module, int]:
    return nn.AvgPool2d(factor), width


def _space_to_depth(width: int, factor: int, out_channels: int, style: Style) -> tuple[nn.Module, int]:
    return nn.PixelUnshuffle(factor), width * factor**2


def _shuffled(width: int, factor: int, out_channels: int, style: Style) -> tuple[nn.Module, int]:
    """Halves by grouped 3x3 with a shuffle after each: one 3x3 of stride 8 would see 9 of 64 pixels.

    The width changes in the last halving, where a pixel is cheapest. Odd widths have a single group.
    """
    blocks: list[nn.Module] = []
    for remaining in range(int(math.log2(factor)), 0, -1):
        after = out_channels if remaining == 1 else width
        groups = math.gcd(2, width, after)
        blocks += [ConvBNAct(width, after, 3, style, stride=2, groups=groups), ChannelShuffle(groups)]
    return nn.Sequential(*blocks), out_channels


REDUCTIONS: dict[str, Callable[[int, int, int, Style], tuple[nn.Module, int]]] = {
    "pool": _pooled,
    "shuffle": _shuffled,
    "s2d": _space_to_depth,
}
"""(width, factor, width of the last map, style) to what makes a map smaller by the factor, and its width then."""


class SkipCat(nn.Module):
    """Concatenates every earlier map, brought to the size of the last one, with it, and fuses them by a 1x1."""

    def __init__(self, widths: Sequence[int], out_channels: int, style: Style, reduction: str) -> None:
        super().__init__()
        reduced = [
            REDUCTIONS[reduction](width, factor, out_channels, style)
            for width, factor in zip(widths, _factors(len(widths)), strict=True)
        ]
        self.reductions = nn.ModuleList(module for module, _ in reduced)
        self.fuse = ConvBNAct(sum(width for _, width in reduced) + out_channels, out_channels, 1, style)

    def forward(self, earlier: Sequence[Tensor], last: Tensor) -> Tensor:
        """Maps [B,width,h*factor,w*factor], finest first, and the last one [B,F,h,w] to [B,F,h,w]."""
        reduced = [reduce(x) for reduce, x in zip(self.reductions, earlier, strict=True)]
        return self.fuse(torch.cat([*reduced, last], dim=1))


class Pyramid(nn.Module):
    """Sums all maps from the coarsest to the finest, and adds what the finest then holds to the last map.

    The depthwise 3x3 on the finest map is what makes this more than a skip: the mean over the cells
    of a map that was enlarged by repetition is that map, so upsampling and averaging alone would
    cancel. The pointwise half of the convolution follows the averaging: on the finest map, of the
    size of the picture, it would cost more than the rest of the pyramid.
    """

    def __init__(self, widths: Sequence[int], out_channels: int, style: Style) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(
            ConvBNAct(width, out_channels, 1, style, act=False) for width in (*widths, out_channels)
        )
        self.smooth = nn.Sequential(
            ConvBNAct(out_channels, out_channels, 3, style, groups=out_channels),
            nn.AvgPool2d(2 ** len(widths)),
            ConvBNAct(out_channels, out_channels, 1, style),
        )

    def forward(self, earlier: Sequence[Tensor], last: Tensor) -> Tensor:
        """Maps [B,width,h*factor,w*factor], finest first, and the last one [B,F,h,w] to [B,F,h,w]."""
        *finer, summed = [lateral(x) for lateral, x in zip(self.laterals, (*earlier, last), strict=True)]
        for lateral in reversed(finer):
            summed = lateral + F.interpolate(summed, scale_factor=2.0, mode="nearest")
        return last + self.smooth(summed)


class UltraTinyResNet(nn.Module):
    """[B,3,H,W] to [B,F,H/8,W/8], F the last width: four stages of residual blocks, halved in between.

    Skips, if there are any, are fused first; the pyramid then takes what they give for the last stage.
    """

    def __init__(self, cfg: CNNConfig, style: Style) -> None:
        super().__init__()
        widths, counts = cfg.stages
        stages = []
        for index, (width, count) in enumerate(zip(widths, counts, strict=True)):
            first = ConvBNAct(widths[index - 1], width, 3, style, stride=2) if index else ConvBNAct(3, width, 3, style)
            stages.append(nn.Sequential(first, *(ResidualBlock(width, style) for _ in range(count))))
        self.stages = nn.ModuleList(stages)
        *earlier, self.out_channels = widths
        self.fusions = nn.ModuleList()
        if reduction := self._reduction(cfg):
            self.fusions.append(SkipCat(earlier, self.out_channels, style, reduction))
        elif cfg.backbone_skip:
            self.fusions.append(SkipSum(earlier, self.out_channels, style))
        if cfg.backbone_fpn:
            self.fusions.append(Pyramid(earlier, self.out_channels, style))

    @staticmethod
    def _reduction(cfg: CNNConfig) -> str | None:
        flags = {
            "pool": cfg.backbone_skip_cat,
            "shuffle": cfg.backbone_skip_shuffle_cat,
            "s2d": cfg.backbone_skip_s2d_cat,
        }
        return next((name for name, given in flags.items() if given), None)

    def forward(self, images: Tensor) -> Tensor:
        """The feature map."""
        maps = []
        x = images
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        for fusion in self.fusions:
            x = fusion(maps[:-1], x)
        return x
