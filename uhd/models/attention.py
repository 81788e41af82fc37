"""Attention, the two kinds of layers made of it, and the positions of the tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uhd.config import TransformerConfig
from uhd.models.layers import ACTIVATIONS

SLOWEST, FASTEST = 0.5, 16.0
"""Waves across the picture's side in its positions. The fastest tells neighbours of a 32x32 grid apart; of DETR's own
waves, none faster than 1, most hardly change at all over so few cells."""


def positions(grid: tuple[int, int], channels: int, device: torch.device) -> Tensor:
    """Sine-cosine positions of a grid's cells (h, w), [h*w,channels], row by row; channels is a multiple of 4.

    The first half of the channels tells y, the second x, each as sines and then cosines. Places are
    the cells' centres as shares of the picture, so that those of coarse and fine grids fit together.
    """
    waves = channels // 4
    # Not as a power of a plain number: a trace would take that for float64.
    growth = math.log(FASTEST / SLOWEST) / max(waves - 1, 1)
    frequencies = 2 * math.pi * SLOWEST * torch.exp(torch.arange(waves, device=device).float() * growth)
    y, x = ((torch.arange(side, device=device).float() + 0.5) / side for side in grid)
    rows, columns = (
        torch.cat([(place[:, None] * frequencies).sin(), (place[:, None] * frequencies).cos()], dim=1)
        for place in (y, x)
    )
    rows, columns = rows[:, None].expand(-1, grid[1], -1), columns[None].expand(grid[0], -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


class Attention(nn.Module):
    """Multi-head attention between tokens of width `channels`."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(channels, 3 * channels)
        self.out_proj = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj.weight)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """What the tokens x [B,N,d] read from memory [B,M,d], or from each other: [B,N,d]."""
        if memory is None:
            query, key, value = self._heads_of(self.in_proj(x), 3)
        else:
            width = x.shape[2]
            weight, bias = self.in_proj.weight, self.in_proj.bias
            (query,) = self._heads_of(F.linear(x, weight[:width], bias[:width]), 1)
            key, value = self._heads_of(F.linear(memory, weight[width:], bias[width:]), 2)
        mixed = _attend(query, key, value).transpose(1, 2)
        return self.out_proj(mixed.flatten(2))

    def extra_macs(self, x: Tensor, memory: Tensor | None = None) -> int:
        """Products of queries and keys and of weights and values, and the projections that are not whole layers."""
        source = x if memory is None else memory
        products = 2 * x.numel() * source.shape[1]
        return products if memory is None else products + x.numel() * x.shape[2] + 2 * source.numel() * x.shape[2]

    def _heads_of(self, projected: Tensor, count: int) -> tuple[Tensor, ...]:
        """[B,N,count*d] to `count` tensors [B,heads,N,d/heads]."""
        parts = projected.view(projected.shape[0], projected.shape[1], count, self.heads, -1)
        return tuple(part.transpose(1, 2) for part in parts.unbind(2))


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]  # torch has no types for it
        # Written out: the exporter that follows a trace has no such operator below opset 14.
        scores = (query * query.shape[3] ** -0.5) @ key.transpose(2, 3)
        return scores.softmax(dim=3) @ value
    return F.scaled_dot_product_attention(query, key, value)


def _feed_forward(cfg: TransformerConfig) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(cfg.d_model, cfg.dim_feedforward),
        ACTIVATIONS[cfg.activation](),
        nn.Linear(cfg.dim_feedforward, cfg.d_model),
    )


class _Layer(nn.Module):
    """What both kinds of layers have: self-attention and a feed-forward block, each added and normalised (post-norm).

    Dropout is on the blocks' outputs only: with dropout of the attention weights, torch's CPU attention
    leaves its fast kernel and writes all of them out.
    """

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__()
        self.attention = Attention(cfg.d_model, cfg.heads)
        self.attention_norm = nn.LayerNorm(cfg.d_model)
        self.feed_forward = _feed_forward(cfg)
        self.feed_forward_norm = nn.LayerNorm(cfg.d_model)
        self.dropout = nn.Dropout(cfg.dropout)

    def read_each_other(self, x: Tensor) -> Tensor:
        """The tokens after self-attention."""
        return self.attention_norm(x + self.dropout(self.attention(x)))

    def transform(self, x: Tensor) -> Tensor:
        """The tokens after the feed-forward block."""
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


class EncoderLayer(_Layer):
    """Tokens read each other, then a feed-forward block."""

    def forward(self, x: Tensor) -> Tensor:
        """[B,N,d] to the same shape."""
        return self.transform(self.read_each_other(x))


class DecoderLayer(_Layer):
    """The same, and between the two the queries read from the encoder's tokens."""

    def __init__(self, cfg: TransformerConfig) -> None:
        super().__init__(cfg)
        self.cross_attention = Attention(cfg.d_model, cfg.heads)
        self.cross_norm = nn.LayerNorm(cfg.d_model)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """Queries [B,Q,d] and tokens [B,N,d] to queries [B,Q,d]."""
        x = self.read_each_other(x)
        x = self.cross_norm(x + self.dropout(self.cross_attention(x, memory)))
        return self.transform(x)
