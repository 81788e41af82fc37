"""A small CNN: a built-in backbone of four convolutions or another one, and one 1x1 convolution as its head."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from uhd.config import CNNConfig
from uhd.models.backbones import Backbone
from uhd.models.base import Detector, Preds
from uhd.models.heads import AnchorDetector, CenterDetector, start_unlikely
from uhd.models.layers import ConvBNAct, DWPoint, Style, channel_attention

STRIDES = {4: (2, 1, 1), 8: (2, 2, 1), 16: (2, 2, 2)}
"""Strides of the three stages by the output stride; the stem halves before them."""


class BuiltInBackbone(nn.Module):
    """[B,3,H,W] to [B,out_channels,H/stride,W/stride]: a stem and three stages of one width, the last one scaled."""

    def __init__(self, cfg: CNNConfig, style: Style) -> None:
        super().__init__()
        width = cfg.cnn_width
        self.out_channels = max(1, round(width * cfg.last_width_scale))
        first, second, third = STRIDES[cfg.stride]
        self.stem = ConvBNAct(3, width, 3, style, stride=2)
        self.stage1 = DWPoint(width, width, style, stride=first)
        self.stage2 = DWPoint(width, width, style, stride=second)
        self.stage3 = DWPoint(width, self.out_channels, style, stride=third)
        self.attention = channel_attention(cfg.last_se, self.out_channels)
        self.pooling = (second * third, third) if cfg.use_skip else ()
        self.skips = nn.ModuleList(
            nn.Identity() if self.out_channels == width else nn.Conv2d(width, self.out_channels, 1, bias=False)
            for _ in self.pooling
        )

    def forward(self, images: Tensor) -> Tensor:
        """The feature map."""
        first = self.stage1(self.stem(images))
        second = self.stage2(first)
        x: Tensor = self.attention(self.stage3(second))
        for skip, factor, stage in zip(self.skips, self.pooling, (first, second), strict=False):
            x = x + skip(F.avg_pool2d(stage, factor) if factor > 1 else stage)
        return x


def _backbone(cfg: CNNConfig) -> BuiltInBackbone | Backbone:
    style = Style(cfg.activation, cfg.use_batchnorm)
    return BuiltInBackbone(cfg, style) if cfg.backbone == "none" else Backbone(cfg, style)


class AnchorCNN(AnchorDetector):
    """The CNN with an anchor head."""

    tag = "cnn"

    def __init__(self, cfg: CNNConfig) -> None:
        super().__init__(cfg, learns_scale=False)
        self.backbone = _backbone(cfg)
        self.head = nn.Conv2d(self.backbone.out_channels, self.layout.channels, 1)
        assert self.head.bias is not None
        start_unlikely(self.head.bias.data.view(cfg.num_anchors, -1)[:, 4:])

    def forward(self, images: Tensor) -> Preds:
        """[B,3,H,W] to the raw maps and "features" [B,F,h,w]."""
        features = self.backbone(images)
        return self.preds_of(self.head(features), features)


class CenterCNN(CenterDetector):
    """The CNN with a CenterNet head."""

    tag = "cnn"

    def __init__(self, cfg: CNNConfig) -> None:
        super().__init__(cfg)
        self.backbone = _backbone(cfg)
        self.add_head(self.backbone.out_channels)

    def forward(self, images: Tensor) -> Preds:
        """[B,3,H,W] to the raw maps and "features" [B,F,h,w]."""
        return self.preds_of(self.backbone(images))


def build_cnn(cfg: CNNConfig) -> Detector:
    """The CNN with the head that its section asks for."""
    return AnchorCNN(cfg) if cfg.use_anchor else CenterCNN(cfg)
