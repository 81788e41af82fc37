"""MobileNeXt (arXiv:2007.02269) with refined kernels: the backbone of NanoDet.

Its blocks are inverted: depthwise convolutions at the wide ends, the narrow 1x1 in the middle.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from uhd.models.layers import ACTIVATIONS, ConvBNAct, Style, init_by_fan_out

STYLE = Style("relu6", True, eps=1e-5, momentum=0.1)
STEM = 32


class Row(NamedTuple):
    """Blocks alike: reduction of the narrow part, channels, number of blocks, stride of the first one."""

    reduction: int
    channels: int
    blocks: int
    stride: int


_SHARED = (Row(2, 96, 1, 2), Row(6, 144, 1, 1), Row(6, 192, 3, 2), Row(6, 288, 3, 2))
_MEDIUM = (*_SHARED, Row(6, 384, 4, 1), Row(6, 576, 4, 2))


def rows_of(size: str, depth: int) -> tuple[Row, ...]:
    """The blocks behind the stem of a size (s, m or l); depth is the number of blocks in the last row of l."""
    return {
        "s": (*_SHARED, Row(6, 384, 4, 2)),
        "m": _MEDIUM,
        "l": (*_MEDIUM, Row(6, 960, depth, 1)),
    }[size]


def nearest_multiple(value: float, divisor: int) -> int:
    """The multiple next to a value, at least one divisor, and never a tenth below the value."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * value else rounded + divisor


class RefinedDepthwise(nn.Module):
    """A depthwise 3x3 whose output is gated, place by place, by the sums of its own kernels; batch norm follows.

    Y = BN(sigmoid(BN(sum over c of s_c X_c)) * depthwise(X)), s_c the sum of the kernel of channel c. The gate depends
    on the picture, so it cannot be folded into the kernels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, 1, 1, groups=channels, bias=False)
        self.gate_norm = nn.BatchNorm2d(1, eps=STYLE.eps, momentum=STYLE.momentum)
        self.norm = nn.BatchNorm2d(channels, eps=STYLE.eps, momentum=STYLE.momentum)

    def _sums(self) -> Tensor:
        """The sums of the kernels as a 1x1 kernel [1,F,1,1]."""
        return self.conv.weight.sum(dim=(2, 3), keepdim=True).transpose(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B,F,h,w] to the same shape."""
        gate = self.gate_norm(F.conv2d(x, self._sums())).sigmoid()
        return self.norm(gate * self.conv(x))

    def folded(self) -> FoldedDepthwise:
        """The same in evaluation mode without batch norms."""
        channels = self.conv.in_channels
        gate = nn.Conv2d(channels, 1, 1, bias=False)
        gate.weight = nn.Parameter(self._sums().detach())
        scale, shift = _affine(self.norm)
        conv = copy.deepcopy(self.conv)
        conv.weight = nn.Parameter(conv.weight.detach() * scale[:, None, None, None])
        return FoldedDepthwise(fuse_conv_bn_eval(gate.eval(), self.gate_norm.eval()), conv, shift)

    def extra_macs(self, x: Tensor) -> int:
        """Multiply-adds of the gate's 1x1."""
        return x[0].numel()


class FoldedDepthwise(nn.Module):
    """A refined depthwise convolution whose batch norms are folded: their shift follows the gate."""

    def __init__(self, gate: nn.Conv2d, conv: nn.Conv2d, shift: Tensor) -> None:
        super().__init__()
        self.gate = gate
        self.conv = conv
        self.shift = nn.Parameter(shift[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """[B,F,h,w] to the same shape."""
        return self.gate(x).sigmoid() * self.conv(x) + self.shift


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """What a batch norm multiplies each channel by in evaluation mode, and adds to it."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.detach() * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias.detach() - norm.running_mean * scale


class Sandglass(nn.Module):
    """One block; what it consists of follows from what it changes.

    Where the channels change without a stride inside a row of several, there is no depthwise convolution at all;
    with a stride only the last one; the block of reduction 2 has two plain ones; all others have a refined first one.
    """

    def __init__(self, in_channels: int, row: Row, stride: int) -> None:
        super().__init__()
        out, changes = row.channels, in_channels != row.channels
        hidden = in_channels // row.reduction
        if hidden < out / 6:
            hidden = nearest_multiple(math.ceil(out / 6), 16)
        first: list[nn.Module] = []
        last: list[nn.Module] = [
            ConvBNAct(out, out, 3, STYLE, stride=stride, groups=out, act=False),
        ]
        if row.reduction == 2:
            first = [ConvBNAct(in_channels, in_channels, 3, STYLE, groups=in_channels)]
        elif changes and stride == 1 and row.blocks > 1:
            last = []
        elif not (changes and stride == 2):
            first = [RefinedDepthwise(in_channels), ACTIVATIONS[STYLE.activation]()]
        self.body = nn.Sequential(
            *first,
            ConvBNAct(in_channels, hidden, 1, STYLE, act=False),
            ConvBNAct(hidden, out, 1, STYLE),
            *last,
        )
        self.adds = stride == 1 and not changes

    def forward(self, x: Tensor) -> Tensor:
        """[B,in,h,w] to [B,out,h/stride,w/stride]."""
        return x + self.body(x) if self.adds else self.body(x)


class MobileNeXt(nn.Module):
    """[B,3,H,W] to the last map of each asked stride, finest first; nothing is built behind the coarsest one.

    rows: see `rows_of`. width: what all channels are multiplied by, rounded to multiples of 8. widths: channels of the
    maps.
    """

    def __init__(self, rows: Sequence[Row], width: float, strides: Sequence[int]) -> None:
        super().__init__()
        self.stem = ConvBNAct(3, nearest_multiple(STEM * width, 8), 3, STYLE, stride=2)
        stages: dict[int, list[nn.Module]] = {}
        widths: dict[int, int] = {}
        stride, channels = 2, nearest_multiple(STEM * width, 8)
        for row in rows:
            if stride * row.stride > strides[-1]:
                break
            stride *= row.stride
            scaled = row._replace(channels=nearest_multiple(row.channels * width, 8))
            for index in range(row.blocks):
                block = Sandglass(channels, scaled, 1 if index else row.stride)
                stages.setdefault(stride, []).append(block)
                channels = widths[stride] = scaled.channels
        self.stages = nn.ModuleList(nn.Sequential(*blocks) for blocks in stages.values())
        self.is_output = [stride in strides for stride in stages]
        self.widths = [widths[stride] for stride in strides]
        init_by_fan_out(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        """The maps."""
        x = self.stem(images)
        maps = []
        for stage, is_output in zip(self.stages, self.is_output, strict=True):
            x = stage(x)
            if is_output:
                maps.append(x)
        return maps
