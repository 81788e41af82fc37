"""Enhanced NanoDet: MobileNeXt, GhostPAN, and a head that tells how far the sides of a box are, on several grids.

The label of a place is decided by a second, larger neck and head that only training has (NanoDet-Plus).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from uhd import codec
from uhd.config import NanoDetConfig
from uhd.models.base import Auxiliary, Detector, Preds
from uhd.models.ghost_pan import GhostPAN, NeckForm
from uhd.models.layers import Style
from uhd.models.mobilenext import MobileNeXt, rows_of
from uhd.models.nanodet_heads import HEADS, AuxiliaryHead

COARSEST_OF_BACKBONE = 32
DETACH_EPOCH = 10
"""Finished epochs after which the auxiliary branch no longer changes what it is built on."""
_BACKBONE, _NECK = "backbone", "neck"
"""What the names of the maps begin with that `forward` gives for the auxiliary branch, before their number."""


class NanoDet(Detector):
    """Raw maps: for each grid, finest first, class logits and distributions of distances [B,C+4*BINS,h,w]."""

    tag = "nano"
    cfg: NanoDetConfig

    def __init__(self, cfg: NanoDetConfig) -> None:
        super().__init__(cfg)
        self.raw_names = codec.grid_names(cfg.nanodet_strides)
        style = Style(cfg.neck_activation, True, eps=1e-5, momentum=0.1)
        channels, kernel = cfg.neck_channels, cfg.nanodet_kernel
        strides = [stride for stride in cfg.nanodet_strides if stride <= COARSEST_OF_BACKBONE]
        self.backbone = MobileNeXt(rows_of(cfg.nanodet_size, cfg.nanodet_depth), cfg.nanodet_width, strides)
        form = NeckForm(channels, kernel, style, cfg.ghost_block_type)
        self.neck = GhostPAN(self.backbone.widths, form, extra=len(strides) < len(cfg.nanodet_strides))
        head = HEADS[cfg.nanodet_size]
        self.heads = torch.nn.ModuleList(head(channels, cfg.num_classes, kernel, style) for _ in cfg.nanodet_strides)

    def forward(self, images: Tensor) -> Preds:
        """[B,3,H,W] to the raw maps and "features", the neck's finest map [B,F,h,w].

        In training mode with the maps that `auxiliary` needs.
        """
        maps = self.backbone(images)
        fused = self.neck(maps)
        raw = [head(x) for head, x in zip(self.heads, fused, strict=True)]
        preds = {**dict(zip(self.raw_names, raw, strict=True)), "features": fused[0]}
        if self.training:
            preds |= _named(_BACKBONE, maps) | _named(_NECK, fused)
        return preds

    def candidates(self, preds: Preds) -> tuple[Tensor, Tensor]:
        """Every place of every grid: boxes [B,N,4] and scores [B,N,C]."""
        places = codec.split_grids([preds[name].float() for name in self.raw_names], self.cfg.num_classes)
        return codec.decode_distances(places.sides, places.points, places.cells), places.cls.sigmoid()

    def decoding(self) -> dict[str, Any]:
        """The settings of `uhd.export.decode_np.GridDecoder`."""
        return {"num_classes": self.cfg.num_classes}

    def details(self) -> dict[str, Any]:
        """The stride of the input's sides and those of the grids."""
        return {**super().details(), "strides": list(self.cfg.nanodet_strides)}

    def auxiliary(self) -> Auxiliary:
        """The second neck and head; its neck starts as a copy of the network's."""
        return NanoDetAuxiliary(self.cfg, copy.deepcopy(self.neck))


class NanoDetAuxiliary(Auxiliary):
    """Maps of backbone and neck to raw maps of the form of the network's own, under `codec.AUX`."""

    def __init__(self, cfg: NanoDetConfig, neck: GhostPAN) -> None:
        super().__init__()
        self.names = codec.grid_names(cfg.nanodet_strides, codec.AUX)
        self.neck = neck
        self.head = AuxiliaryHead(
            2 * cfg.neck_channels,
            cfg.num_classes,
            cfg.nanodet_aux_width,
            cfg.nanodet_aux_depth,
            grids=len(cfg.nanodet_strides),
            activation=cfg.neck_activation,
        )
        self.is_detached = False

    def set_progress(self, epoch: int) -> None:
        """From DETACH_EPOCH on its gradient stays in it."""
        self.is_detached = epoch >= DETACH_EPOCH

    def forward(self, preds: Preds) -> Preds:
        """What `NanoDet.forward` gave in training mode to further raw maps [B,C+4*BINS,h,w]."""
        maps, fused = _listed(_BACKBONE, preds), _listed(_NECK, preds)
        if self.is_detached:
            maps, fused = ([x.detach() for x in group] for group in (maps, fused))
        joined = [torch.cat(pair, dim=1) for pair in zip(fused, self.neck(maps), strict=True)]
        return dict(zip(self.names, self.head(joined), strict=True))


def _named(prefix: str, maps: list[Tensor]) -> Preds:
    return {f"{prefix}{index}": x for index, x in enumerate(maps)}


def _listed(prefix: str, preds: Preds) -> list[Tensor]:
    """The maps of a prefix, in the order in which `_named` named them."""
    return [x for name, x in preds.items() if name.startswith(prefix)]
