"""Backbones of the CNN other than its own: all of stride 8, before the halvings that can be appended."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from uhd.config import CNNConfig
from uhd.models.layers import ConvBNAct, Style, channel_attention
from uhd.models.resnet import ChannelShuffle, SkipSum, UltraTinyResNet

STRIDE = 8
"""Pixels per cell of every trunk."""
GAINS = {"relu": math.sqrt(2), "swish": 1.676}
"""One by the root mean square of the activation of normally distributed values of spread 1."""


# --- MicroCSPNet --------------------------------------------------------------------------------------


class CSP(nn.Module):
    """Cross stage partial block (arXiv:1911.11929): half of the channels past two 3x3, both joined by a 1x1."""

    def __init__(self, channels: int, style: Style) -> None:
        super().__init__()
        hidden = channels // 2
        self.reduce = ConvBNAct(channels, hidden, 1, style)
        self.blocks = nn.Sequential(ConvBNAct(hidden, hidden, 3, style), ConvBNAct(hidden, hidden, 3, style))
        self.fuse = ConvBNAct(2 * hidden, channels, 1, style)

    def forward(self, x: Tensor) -> Tensor:
        """[B,F,h,w] to the same shape."""
        x = self.reduce(x)
        return self.fuse(torch.cat([x, self.blocks(x)], dim=1))


class MicroCSPNet(nn.Sequential):
    """[B,3,H,W] to [B,64,H/8,W/8]."""

    out_channels = 64

    def __init__(self, style: Style) -> None:
        super().__init__(
            ConvBNAct(3, 16, 3, style),
            ConvBNAct(16, 32, 3, style, stride=2),
            CSP(32, style),
            ConvBNAct(32, 64, 3, style, stride=2),
            CSP(64, style),
            ConvBNAct(64, 128, 3, style, stride=2),
            ConvBNAct(128, self.out_channels, 1, style),
        )


# --- Enhanced ShuffleNet ------------------------------------------------------------------------------


class ShuffleUnit(nn.Module):
    """ShuffleNetV2's unit (arXiv:1807.11164): half of the channels pass, half are convolved, then both are shuffled."""

    def __init__(self, channels: int, style: Style) -> None:
        super().__init__()
        half = channels // 2
        self.halves = [half, half]
        self.blocks = nn.Sequential(
            ConvBNAct(half, half, 1, style),
            ConvBNAct(half, half, 3, style, groups=half, act=False),
            ConvBNAct(half, half, 1, style),
        )
        self.shuffle = ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """[B,F,h,w] to the same shape; F is even."""
        passed, convolved = torch.split(x, self.halves, dim=1)
        return self.shuffle(torch.cat([passed, self.blocks(convolved)], dim=1))


class StridedShuffleUnit(nn.Module):
    """ShuffleNetV2's unit of stride 2: two branches see all channels, each makes half of the new ones."""

    def __init__(self, in_channels: int, out_channels: int, style: Style) -> None:
        super().__init__()
        half = out_channels // 2
        self.short = nn.Sequential(
            ConvBNAct(in_channels, in_channels, 3, style, stride=2, groups=in_channels, act=False),
            ConvBNAct(in_channels, half, 1, style),
        )
        self.long = nn.Sequential(
            ConvBNAct(in_channels, half, 1, style),
            ConvBNAct(half, half, 3, style, stride=2, groups=half, act=False),
            ConvBNAct(half, half, 1, style),
        )
        self.shuffle = ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """[B,in,h,w] to [B,out,h/2,w/2]; out is even."""
        return self.shuffle(torch.cat([self.short(x), self.long(x)], dim=1))


class ShuffleStage(nn.Module):
    """A strided unit, then for each further width a 1x1 to it and two units; around all of it a strided 1x1."""

    def __init__(self, in_channels: int, widths: Sequence[int], style: Style) -> None:
        super().__init__()
        blocks: list[nn.Module] = [StridedShuffleUnit(in_channels, widths[0], style)]
        for before, width in itertools.pairwise(widths):
            blocks += [ConvBNAct(before, width, 1, style), ShuffleUnit(width, style), ShuffleUnit(width, style)]
        self.blocks = nn.Sequential(*blocks)
        self.shortcut = ConvBNAct(in_channels, widths[-1], 1, style, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[B,in,h,w] to [B,widths[-1],h/2,w/2]."""
        return self.blocks(x) + self.shortcut(x)


class EnhancedShuffleNet(nn.Module):
    """[B,3,H,W] to [B,128,H/8,W/8], after PP-PicoDet's ESNet (arXiv:2111.00902): each stage widens by steps."""

    out_channels = 128

    def __init__(self, cfg: CNNConfig, style: Style) -> None:
        super().__init__()
        self.stem = ConvBNAct(3, 32, 3, style, stride=2)
        self.stage2 = ShuffleStage(32, (64, 80, 96, 112), style)
        self.stage3 = ShuffleStage(112, (144, 160, 176, 192), style)
        self.project = ConvBNAct(192, self.out_channels, 1, style)
        self.skip = SkipSum((32, 112), self.out_channels, style) if cfg.backbone_skip else None

    def forward(self, images: Tensor) -> Tensor:
        """The feature map."""
        early = self.stem(images)
        middle = self.stage2(early)
        x = self.project(self.stage3(middle))
        return x if self.skip is None else self.skip([early, middle], x)


# --- all ----------------------------------------------------------------------------------------------

Trunk = MicroCSPNet | UltraTinyResNet | EnhancedShuffleNet
TRUNKS: dict[str, Callable[[CNNConfig, Style], Trunk]] = {
    "microcspnet": lambda _, style: MicroCSPNet(style),
    "ultratinyresnet": UltraTinyResNet,
    "enhanced-shufflenet": EnhancedShuffleNet,
}


def _keep_spread(module: nn.Module, gain: float) -> None:
    """Weights under which a map is spread as the one before it (arXiv:1502.01852), for nets without batch norm.

    Under torch's own, each convolution leaves a third of the variance and the activation less than half of that.
    After some fifteen in a row about 1e-6 of the picture is left: the head learns constants at first, and half
    precision underflows.
    """
    for block in module.modules():
        if isinstance(block, ConvBNAct):
            conv, *activation = block
            assert isinstance(conv, nn.Conv2d)
            fan_in = conv.weight[0].numel()
            nn.init.normal_(conv.weight, std=(gain if activation else 1) / math.sqrt(fan_in))


class Backbone(nn.Module):
    """[B,3,H,W] to [B,out_channels,H/stride,W/stride]: a trunk, halvings to the stride asked for, channel attention."""

    def __init__(self, cfg: CNNConfig, style: Style) -> None:
        super().__init__()
        self.trunk = TRUNKS[cfg.backbone](cfg, style)
        channels = self.out_channels = self.trunk.out_channels
        halvings = int(math.log2((cfg.backbone_out_stride or STRIDE) // STRIDE))
        self.down = nn.Sequential(*(ConvBNAct(channels, channels, 3, style, stride=2) for _ in range(halvings)))
        self.attention = channel_attention(cfg.backbone_se, channels)
        if not style.batchnorm:
            _keep_spread(self, GAINS[style.activation])

    def forward(self, images: Tensor) -> Tensor:
        """The feature map."""
        return self.attention(self.down(self.trunk(images)))
