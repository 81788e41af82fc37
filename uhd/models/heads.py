"""Detectors by the kind of their raw maps: what all nets with an anchor map, a heat map or levels have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uhd import codec
from uhd.config import AnchorModelConfig, AnchorSizesConfig, TinySSDConfig
from uhd.models.base import Detector, Preds

PRIOR_PROBABILITY = 0.01
"""What objectness, quality, class and heat map predict at first: most places hold nobody. At one half, quality's sum
over all priors is most of the first epoch's gradient, and a run of few epochs never makes up for it."""


def start_unlikely(bias: Tensor | None) -> None:
    """Sets biases before a sigmoid so that it gives PRIOR_PROBABILITY."""
    assert bias is not None
    with torch.no_grad():
        bias.fill_(-math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY))


def anchors_of(cfg: AnchorSizesConfig) -> Tensor:
    """The anchors of a section, [A,2] float32; ValueError where they are not set."""
    if cfg.anchors is None:
        raise ValueError(f"the anchors of {cfg.arch} are not set: give --anchors or --auto-anchors")
    return torch.tensor(cfg.anchors, dtype=torch.float32)


class AnchorDetector(Detector):
    """Raw maps: the anchor map, the anchors [A,2] (w, h, normalised) and their scale [A,2], learned or 1."""

    cfg: AnchorModelConfig
    anchors: Tensor

    def __init__(self, cfg: AnchorModelConfig, *, learns_scale: bool) -> None:
        super().__init__(cfg)
        self.layout = codec.AnchorLayout(cfg.num_anchors, cfg.num_classes, cfg.has_quality)
        self.raw_names = (self.layout.raw_name, "anchors", "wh_scale")
        self.register_buffer("anchors", anchors_of(cfg))
        wh_scale = torch.ones(cfg.num_anchors, 2)
        if learns_scale:
            self.wh_scale = nn.Parameter(wh_scale)
        else:
            self.register_buffer("wh_scale", wh_scale)

    def preds_of(self, raw: Tensor, features: Tensor) -> Preds:
        """What `forward` gives, from the anchor map and the features that it was made of."""
        return {self.layout.raw_name: raw, "anchors": self.anchors, "wh_scale": self.wh_scale, "features": features}

    def candidates(self, preds: Preds) -> tuple[Tensor, Tensor]:
        """Every prior: boxes [B,N,4] and scores [B,N,C]."""
        priors = codec.split_anchor_map(preds[self.layout.raw_name].float(), self.layout)
        boxes = codec.decode_anchor_boxes(priors, preds["anchors"].float(), preds["wh_scale"].float())
        return boxes, codec.anchor_scores(priors, self.cfg.scores_without_obj, self.cfg.quality_power)

    def decoding(self) -> dict[str, Any]:
        """The settings of `uhd.export.decode_np.AnchorDecoder`."""
        factors = {"obj": not self.cfg.scores_without_obj, "quality": self.cfg.has_quality, "cls": True}
        return {
            "num_classes": self.cfg.num_classes,
            "has_quality": self.cfg.has_quality,
            "score_mode": "*".join(name for name, given in factors.items() if given),
            "quality_power": self.cfg.quality_power,
        }

    def details(self) -> dict[str, Any]:
        """The stride of the grid, the anchors (w, h, normalised) and what they are multiplied by."""
        return {**super().details(), "anchors": self.anchors.tolist(), "wh_scale": self.wh_scale.tolist()}


class CenterDetector(Detector):
    """Raw maps: a heat map of centres [B,C,h,w] and, in cells, their offsets [B,2,h,w] and sizes [B,2,h,w]."""

    raw_names = codec.CENTER_NAMES
    uses_nms = False

    def add_head(self, channels: int) -> None:
        """Makes the three 1x1 convolutions on features of so many channels."""
        self.heatmap = nn.Conv2d(channels, self.cfg.num_classes, 1)
        self.offset = nn.Conv2d(channels, 2, 1)
        self.size = nn.Conv2d(channels, 2, 1)
        start_unlikely(self.heatmap.bias)

    def preds_of(self, features: Tensor) -> Preds:
        """What `forward` gives, from the features [B,F,h,w]."""
        layers = (self.heatmap, self.offset, self.size)
        if self.training:
            # As one convolution: on so small maps three of them take three times as long, most of it backwards.
            weight, bias = (torch.cat([getattr(layer, name) for layer in layers]) for name in ("weight", "bias"))
            maps = torch.split(F.conv2d(features, weight, bias), [layer.out_channels for layer in layers], dim=1)
        else:
            maps = tuple(layer(features) for layer in layers)
        return {**dict(zip(self.raw_names, maps, strict=True)), "features": features}

    def candidates(self, preds: Preds) -> tuple[Tensor, Tensor]:
        """Every cell: boxes [B,h*w,4] and scores [B,h*w,C], 0 for those that are no peak."""
        heatmap, offsets, sizes = (preds[name].float() for name in self.raw_names)
        return codec.decode_centers(offsets, sizes), codec.center_scores(heatmap)

    def decoding(self) -> dict[str, Any]:
        """`uhd.export.decode_np.CenterDecoder` needs nothing beside the maps."""
        return {}


class SSDDetector(Detector):
    """Raw maps: for each level class logits and offsets, and the anchors [A,2] (w, h, normalised) of all levels."""

    cfg: TinySSDConfig
    anchors: Tensor

    def __init__(self, cfg: TinySSDConfig) -> None:
        super().__init__(cfg)
        self.layout = codec.LevelLayout(cfg.anchor_counts, cfg.num_classes, cfg.has_background)
        self.raw_names = self.layout.raw_names
        self.register_buffer("anchors", anchors_of(cfg))

    def add_head(self, widths: Sequence[int]) -> None:
        """Makes two 3x3 convolutions on the features of each level, which have so many channels."""
        layout = self.layout
        self.cls, self.box = nn.ModuleList(), nn.ModuleList()
        for width, count in zip(widths, layout.counts, strict=True):
            cls = nn.Conv2d(width, count * layout.outputs, 3, padding=1)
            assert cls.bias is not None
            start_unlikely(cls.bias.data.view(count, layout.outputs)[:, : layout.num_classes])
            self.cls.append(cls)
            self.box.append(nn.Conv2d(width, count * 4, 3, padding=1))

    def preds_of(self, features: Sequence[Tensor]) -> Preds:
        """What `forward` gives, from the features [B,F,h,w] of each level, the finest first."""
        maps = [layer(each) for each, *layers in zip(features, self.cls, self.box, strict=True) for layer in layers]
        return {**dict(zip(self.raw_names, [*maps, self.anchors], strict=True)), "features": features[0]}

    def candidates(self, preds: Preds) -> tuple[Tensor, Tensor]:
        """Every prior: boxes [B,N,4] and scores [B,N,C]."""
        priors = codec.split_levels(preds, self.layout)
        return codec.decode_offsets(priors.box, priors.places), codec.level_scores(priors.cls, self.layout)

    def decoding(self) -> dict[str, Any]:
        """The settings of `uhd.export.decode_np.SSDDecoder`."""
        return {"counts": list(self.layout.counts), "has_background": self.layout.has_background}

    def details(self) -> dict[str, Any]:
        """The stride of the finest level, and the anchors (w, h, normalised) level by level."""
        return {**super().details(), "anchors": self.anchors.tolist()}
