"""GhostPAN: the neck of NanoDet, a path-aggregation network (arXiv:1803.01534) of ghost modules (arXiv:1911.11907)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uhd.models.layers import ConvBNAct, DWSep, Style, init_by_fan_out


@dataclass(frozen=True)
class NeckForm:
    """What the neck's maps have in common: channels, side of the depthwise kernels, style, kind of its blocks."""

    channels: int
    kernel: int
    style: Style
    block: str


class Ghost(nn.Module):
    """A 1x1 to half of the channels, and a depthwise 3x3 on it that gives the other half."""

    def __init__(self, in_channels: int, out_channels: int, style: Style, *, act: bool = True) -> None:
        super().__init__()
        half = out_channels // 2
        self.primary = ConvBNAct(in_channels, half, 1, style, act=act)
        self.cheap = ConvBNAct(half, half, 3, style, groups=half, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """[B,in,h,w] to [B,out,h,w]."""
        primary = self.primary(x)
        return torch.cat([primary, self.cheap(primary)], dim=1)


class Ghost2Former(nn.Module):
    """[B,2c,h,w] to [B,c,h,w]: a ghost module seen by a depthwise kernel, times a 1x1 of the input, mixed by a 1x1."""

    def __init__(self, form: NeckForm) -> None:
        super().__init__()
        c = form.channels
        self.ghost = Ghost(2 * c, c, form.style)
        self.spread = nn.Conv2d(c, c, form.kernel, 1, form.kernel // 2, groups=c, bias=False)
        self.gate = nn.Conv2d(2 * c, c, 1, bias=False)
        self.mix = ConvBNAct(c, c, 1, form.style, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.mix(self.spread(self.ghost(x)) * self.gate(x))


class GhostResidual(nn.Module):
    """[B,2c,h,w] to [B,c,h,w]: two ghost modules and a depthwise-separable shortcut, added."""

    def __init__(self, form: NeckForm) -> None:
        super().__init__()
        c, style = form.channels, form.style
        self.ghosts = nn.Sequential(Ghost(2 * c, c, style), Ghost(c, c, style, act=False))
        self.shortcut = nn.Sequential(
            ConvBNAct(2 * c, 2 * c, form.kernel, style, groups=2 * c, act=False),
            ConvBNAct(2 * c, c, 1, style, act=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.ghosts(x) + self.shortcut(x)


BLOCKS: dict[str, type[Ghost2Former] | type[GhostResidual]] = {"plus": Ghost2Former, "normal": GhostResidual}
"""What fuses two maps of c channels to one, by --ghost-block-type."""


class GhostPAN(nn.Module):
    """Maps of the backbone, each half the size of the one before, to as many of c channels, or one coarser more.

    widths: channels of the backbone's maps, finest first. extra: whether a map of half the size of the last is added.
    """

    def __init__(self, widths: Sequence[int], form: NeckForm, *, extra: bool) -> None:
        super().__init__()
        c, style, block = form.channels, form.style, BLOCKS[form.block]
        joins = range(len(widths) - 1)
        self.reduce = nn.ModuleList(ConvBNAct(width, c, 1, style) for width in widths)
        self.halve = nn.ModuleList(DWSep(c, c, style, kernel=form.kernel, stride=2) for _ in joins)
        self.extra = nn.ModuleList(
            DWSep(c, c, style, kernel=form.kernel, stride=2) for _ in (("reduced", "last") if extra else ())
        )
        init_by_fan_out(self)
        # Behind this, so that they keep torch's own initial weights.
        self.down = nn.ModuleList(block(form) for _ in joins)
        self.up = nn.ModuleList(block(form) for _ in joins)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """[B,width,h,w] each to [B,c,h,w] each."""
        reduced = [reduce(x) for reduce, x in zip(self.reduce, maps, strict=True)]
        inner = [reduced[-1]]
        for lower, block in zip(reversed(reduced[:-1]), self.down, strict=True):
            enlarged = F.interpolate(inner[0], scale_factor=2.0, mode="bilinear", align_corners=False)
            inner.insert(0, block(torch.cat([enlarged, lower], dim=1)))
        outer = [inner[0]]
        for upper, halve, block in zip(inner[1:], self.halve, self.up, strict=True):
            outer.append(block(torch.cat([halve(outer[-1]), upper], dim=1)))
        if len(self.extra):
            outer.append(self.extra[0](reduced[-1]) + self.extra[1](outer[-1]))
        return outer
