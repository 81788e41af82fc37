"""UltraTinyOD: a depthwise-separable backbone and an anchor head on one grid."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uhd.config import UltraTinyODConfig
from uhd.models.base import Preds
from uhd.models.heads import AnchorDetector, start_unlikely
from uhd.models.layers import ESE, ConvBNAct, DWSep, SPPFMin, Style


class Backbone(nn.Module):
    """[B,3,H,W] to [B,4c,H/stride,W/stride]."""

    def __init__(self, cfg: UltraTinyODConfig, style: Style) -> None:
        super().__init__()
        c = cfg.cnn_width
        third_stride = 1 if cfg.stride == 4 else 2
        fourth_stride = 2 if cfg.stride == 16 else 1
        self.stem = ConvBNAct(3, c, 3, style, stride=2)
        self.stage2 = DWSep(c, 2 * c, style, stride=2)
        self.stage3 = DWSep(2 * c, 4 * c, style, stride=third_stride)
        self.stage4 = DWSep(4 * c, 8 * c, style, stride=fourth_stride)
        self.stage5 = DWSep(8 * c, 8 * c, style)
        self.project = ConvBNAct(4 * c, 8 * c, 1, style, stride=fourth_stride, act=False) if cfg.utod_residual else None
        self.sppf = SPPFMin(8 * c, 4 * c, style)

    def forward(self, images: Tensor) -> Tensor:
        """The feature map."""
        x = self.stage3(self.stage2(self.stem(images)))
        if self.project is None:
            x = self.stage5(self.stage4(x))
        else:
            x = self.stage4(x) + self.project(x)
            x = self.stage5(x) + x
        return self.sppf(x)


class ContextRFB(nn.Module):
    """Two receptive fields side by side: x + 1x1(cat(dilated 3x3, 5x5)), both depthwise."""

    def __init__(self, channels: int, dilation: int, style: Style) -> None:
        super().__init__()
        self.dilated = ConvBNAct(channels, channels, 3, style, groups=channels, dilation=dilation)
        self.wide = ConvBNAct(channels, channels, 5, style, groups=channels)
        self.fuse = ConvBNAct(2 * channels, channels, 1, style)

    def forward(self, x: Tensor) -> Tensor:
        """[B,F,h,w] to the same shape."""
        return x + self.fuse(torch.cat([self.dilated(x), self.wide(x)], dim=1))


class LargeObjectBranch(nn.Module):
    """Context at half resolution, added back after nearest upsampling."""

    def __init__(self, channels: int, depth: int, scale: float, style: Style) -> None:
        super().__init__()
        hidden = max(1, round(channels * scale))
        self.blocks = nn.Sequential(
            ConvBNAct(channels, channels, 3, style, stride=2, groups=channels),
            ConvBNAct(channels, hidden, 1, style),
            *(DWSep(hidden, hidden, style) for _ in range(depth)),
            ConvBNAct(hidden, channels, 1, style),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B,F,h,w] to the same shape, for odd h and w too."""
        return x + F.interpolate(self.blocks(x), size=x.shape[2:], mode="nearest")


class Residual(nn.Sequential):
    """x + f(x)."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape that the inner blocks keep."""
        return x + super().forward(x)  # type: ignore[no-untyped-call]


class Head(nn.Module):
    """[B,F,h,w] to the raw map [B,A*(5+q+C),h,w], anchor-major: tx ty tw th obj [quality] cls."""

    def __init__(self, cfg: UltraTinyODConfig, style: Style) -> None:
        super().__init__()
        channels = 4 * cfg.cnn_width
        self.num_anchors = cfg.num_anchors
        self.context = nn.Sequential(*self._context(cfg, channels, style))
        depth = 2 if cfg.use_iou_aware_head else 1

        def blocks(width: int, count: int) -> list[nn.Module]:
            return [DWSep(width, width, style) for _ in range(count)]

        anchors = cfg.num_anchors
        cls_width = max(8, channels // 2)
        self.box = nn.Sequential(*blocks(channels, depth), nn.Conv2d(channels, 4 * anchors, 1))
        self.obj = nn.Sequential(*blocks(channels, 1), nn.Conv2d(channels, anchors, 1))
        self.quality = (
            nn.Sequential(*blocks(channels, depth), nn.Conv2d(channels, anchors, 1)) if cfg.has_quality else None
        )
        self.cls = nn.Sequential(
            ConvBNAct(channels, cls_width, 1, style),
            *blocks(cls_width, depth),
            nn.Conv2d(cls_width, anchors * cfg.num_classes, 1),
        )
        for branch in (self.obj, self.cls, *([self.quality] if self.quality is not None else [])):
            last = branch[-1]
            assert isinstance(last, nn.Conv2d)
            start_unlikely(last.bias)

    @staticmethod
    def _context(cfg: UltraTinyODConfig, channels: int, style: Style) -> list[nn.Module]:
        blocks: list[nn.Module] = [DWSep(channels, channels, style)]
        if cfg.use_improved_head:
            blocks.append(
                Residual(
                    DWSep(channels, channels, style),
                    ConvBNAct(channels, channels, 1, style),
                    DWSep(channels, channels, style),
                )
            )
        if cfg.utod_context_rfb:
            blocks.append(ContextRFB(channels, cfg.utod_context_dilation, style))
        if cfg.utod_large_obj_branch:
            blocks.append(LargeObjectBranch(channels, cfg.utod_large_obj_depth, cfg.utod_large_obj_ch_scale, style))
        if cfg.utod_head_ese:
            blocks.append(ESE(channels))
        return blocks

    def forward(self, features: Tensor) -> Tensor:
        """The raw map."""
        x = self.context(features)
        branches = [self.box, self.obj, *([self.quality] if self.quality is not None else []), self.cls]
        maps = [branch(x).unflatten(1, (self.num_anchors, -1)) for branch in branches]
        return torch.cat(maps, dim=2).flatten(1, 2)


class UltraTinyOD(AnchorDetector):
    """The improved head learns the scale of its anchors."""

    tag = "utod"

    def __init__(self, cfg: UltraTinyODConfig) -> None:
        super().__init__(cfg, learns_scale=cfg.use_improved_head)
        style = Style(cfg.activation, cfg.use_batchnorm)
        self.backbone = Backbone(cfg, style)
        self.head = Head(cfg, style)

    def forward(self, images: Tensor) -> Preds:
        """[B,3,H,W] to the raw maps and "features" [B,4c,h,w]."""
        features = self.backbone(images)
        return self.preds_of(self.head(features), features)
