"""Building blocks shared by the architectures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

BN_EPS = 1e-3
BN_MOMENTUM = 0.03
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "swish": lambda: nn.SiLU(),
    "relu6": lambda: nn.ReLU6(inplace=True),
    "leakyrelu": lambda: nn.LeakyReLU(0.1, inplace=True),
    "hardswish": lambda: nn.Hardswish(),
}


@dataclass(frozen=True)
class Style:
    """What all convolutions of a net share: the activation's name, whether batch norm follows, and its constants."""

    activation: str
    batchnorm: bool
    eps: float = BN_EPS
    momentum: float = BN_MOMENTUM


def norm(channels: int, style: Style) -> list[nn.Module]:
    """The batch norm after a convolution, or nothing."""
    return [nn.BatchNorm2d(channels, eps=style.eps, momentum=style.momentum)] if style.batchnorm else []


def init_by_fan_out(network: nn.Module) -> None:
    """All kernels of variance 2 / fan-out, where the fan-out of a depthwise kernel is that of its own channel.

    torch's kaiming_normal_ takes that of all channels together, which makes depthwise kernels too small.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))


class ConvBNAct(nn.Sequential):
    """Bias-free convolution with "same" padding, BN if the style has it, activation unless act=False."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        style: Style,
        *,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
        act: bool = True,
    ) -> None:
        padding = dilation * (kernel // 2)
        conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride, padding, dilation=dilation, groups=groups, bias=False
        )
        activation = [ACTIVATIONS[style.activation]()] if act else []
        super().__init__(conv, *norm(out_channels, style), *activation)


class DWSep(nn.Sequential):
    """Depthwise 3x3, or of another kernel, and pointwise 1x1, each with BN and activation."""

    def __init__(self, in_channels: int, out_channels: int, style: Style, *, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            ConvBNAct(in_channels, in_channels, kernel, style, stride=stride, groups=in_channels),
            ConvBNAct(in_channels, out_channels, 1, style),
        )


class DWPoint(nn.Sequential):
    """Depthwise 3x3 and pointwise 1x1 with one BN and one activation after both."""

    def __init__(self, in_channels: int, out_channels: int, style: Style, *, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(in_channels, in_channels, 3, stride, 1, groups=in_channels, bias=False),
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            *norm(out_channels, style),
            ACTIVATIONS[style.activation](),
        )


class SPPFMin(nn.Module):
    """Half-width 1x1, its 5x5 max-pool beside it, 1x1 to the output width."""

    def __init__(self, in_channels: int, out_channels: int, style: Style) -> None:
        super().__init__()
        hidden = in_channels // 2
        self.reduce = ConvBNAct(in_channels, hidden, 1, style)
        self.pool = nn.MaxPool2d(5, stride=1, padding=2)
        self.fuse = ConvBNAct(2 * hidden, out_channels, 1, style)

    def forward(self, x: Tensor) -> Tensor:
        """[B,in,h,w] to [B,out,h,w]."""
        x = self.reduce(x)
        return self.fuse(torch.cat([x, self.pool(x)], dim=1))


class ESE(nn.Module):
    """Effective squeeze-and-excitation: each channel scaled by a sigmoid of all channel means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B,F,h,w] to the same shape."""
        return x * self.fc(x.mean(dim=(2, 3), keepdim=True)).sigmoid()


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation (arXiv:1709.01507): each channel scaled by what two small layers make of all means."""

    REDUCTION = 4

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // self.REDUCTION)
        self.gate = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B,F,h,w] to the same shape."""
        return x * self.gate(x.mean(dim=(2, 3), keepdim=True))


_ATTENTIONS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda channels: nn.Identity(),
    "se": SqueezeExcite,
    "ese": ESE,
}


def channel_attention(kind: str, channels: int) -> nn.Module:
    """What scales the channels of a map [B,F,h,w]: none, se or ese."""
    return _ATTENTIONS[kind](channels)
