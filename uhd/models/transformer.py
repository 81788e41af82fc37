"""Transformer: a tiny DETR, whose learned queries each find at most one person."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from uhd import codec
from uhd.config import TransformerConfig
from uhd.models.attention import DecoderLayer, EncoderLayer, positions
from uhd.models.base import Preds, SplitDetector
from uhd.models.layers import DWPoint, Style

PRIOR_PROBABILITY = 0.1
"""What the classes predict together at first: about the share of queries that have somebody to find."""


class Pyramid(nn.Module):
    """[B,d,h,w] to further levels of strides 1, 2 and 4, each made from the one before it."""

    def __init__(self, channels: int, style: Style) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(DWPoint(channels, channels, style, stride=stride) for stride in (1, 2, 2))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Each block's output, made from that of the block before it."""
        levels = []
        for block in self.blocks:
            x = block(x)
            levels.append(x)
        return levels


class Transformer(SplitDetector):
    """Raw maps: class logits [B,Q,C+1], the background last, and box logits [B,Q,4], whose sigmoid is cx cy w h."""

    tag = "tf"
    raw_names = codec.QUERY_NAMES
    uses_nms = False
    part = 8
    cfg: TransformerConfig

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__(cfg)
        width = cfg.d_model
        self.patches = nn.Conv2d(3, width, 3, 2, 1)
        self.pyramid = Pyramid(width, Style(cfg.activation, batchnorm=True)) if cfg.use_fpn else None
        self.encoder_layers = nn.ModuleList(EncoderLayer(cfg) for _ in range(cfg.layers))
        self.decoder_layers = nn.ModuleList(DecoderLayer(cfg) for _ in range(cfg.layers))
        self.queries = nn.Parameter(torch.randn(cfg.num_queries, width))
        self.class_head = nn.Linear(width, cfg.num_classes + 1)
        self.box_head = nn.Linear(width, 4)
        self._init_heads()

    def _init_heads(self) -> None:
        nn.init.zeros_(self.class_head.bias)
        with torch.no_grad():
            share = PRIOR_PROBABILITY / self.cfg.num_classes
            self.class_head.bias[-1] = math.log((1 - PRIOR_PROBABILITY) / share)

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """[B,3,H,W] to tokens [B,N,d], positions added, and the grid (h, w) of the last level."""
        finest = self.patches(images)
        levels = [finest, *(self.pyramid(finest) if self.pyramid is not None else [])]
        tokens = [
            level.flatten(2).transpose(1, 2)
            + positions((level.shape[2], level.shape[3]), self.cfg.d_model, level.device)
            for level in levels
        ]
        return torch.cat(tokens, dim=1), (levels[-1].shape[2], levels[-1].shape[3])

    def attend(self, tokens: Tensor, grid: tuple[int, int]) -> Preds:
        """Tokens [B,N,d] to the raw maps and "features" [B,d,h,w], the encoder's output on the last level."""
        for layer in self.encoder_layers:
            tokens = layer(tokens)
        finer = tokens.shape[1] - grid[0] * grid[1]
        last = tokens[:, finer:]
        features = last.transpose(1, 2).reshape(last.shape[0], last.shape[2], grid[0], grid[1])
        # Put together anew, so that what is found depends on the very tensor that is given as the features.
        tokens = torch.cat([tokens[:, :finer], features.flatten(2).transpose(1, 2)], dim=1)
        queries = self.queries.expand(tokens.shape[0], -1, -1)
        for layer in self.decoder_layers:
            queries = layer(queries, tokens)
        maps = (self.class_head(queries), self.box_head(queries))
        return {**dict(zip(self.raw_names, maps, strict=True)), "features": features}

    def candidates(self, preds: Preds) -> tuple[Tensor, Tensor]:
        """Every query: boxes [B,Q,4] and scores [B,Q,C]."""
        class_logits, box_logits = (preds[name].float() for name in self.raw_names)
        return codec.decode_query_boxes(box_logits), codec.query_scores(class_logits)

    def decoding(self) -> dict[str, Any]:
        """`uhd.export.decode_np.QueryDecoder` needs nothing beside the maps."""
        return {}

    def details(self) -> dict[str, Any]:
        """The stride of the input's sides and the number of queries."""
        return {**super().details(), "num_queries": self.cfg.num_queries}
