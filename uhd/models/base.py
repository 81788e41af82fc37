"""What every architecture is to the rest of the program."""

from __future__ import annotations

import copy
import itertools
from abc import ABC, abstractmethod
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from uhd.boxes import soft_suppress, suppress
from uhd.codec import best_candidates
from uhd.config import DecodeConfig, ModelConfig
from uhd.types import Detections

Preds = dict[str, Tensor]


class Detector(nn.Module, ABC):
    """A network from pictures to raw maps, and its decoding to boxes.

    tag names the architecture in checkpoint files; the sides of an input are multiples of stride; raw_names are the
    maps of `forward` in the order in which an exported graph gives them, decoder (the kind of head) names what turns
    them into boxes without torch (`uhd.export.decode_np`).
    """

    tag: str
    raw_names: tuple[str, ...]
    stride: int
    uses_nms: bool = True

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.stride = cfg.stride
        self.decoder = cfg.head

    @abstractmethod
    def forward(self, images: Tensor) -> Preds:
        """[B,3,H,W] RGB in 0..1 to the raw maps (logits), plus "features" [B,F,h,w]."""

    @abstractmethod
    def candidates(self, preds: Preds) -> tuple[Tensor, Tensor]:
        """All candidates in their fixed order: boxes [B,N,4] xyxy, not clipped, and scores [B,N,C] in 0..1."""

    def decode(self, preds: Preds, cfg: DecodeConfig) -> Detections:
        """The best `pre_nms_topk` candidate-class pairs [B,K] by descending score; K is fixed by the shapes."""
        return best_candidates(*self.candidates(preds), cfg.pre_nms_topk)

    def finish(self, candidates: Detections, cfg: DecodeConfig, conf_thresh: float, topk: int) -> Detections:
        """The detections [B,topk] among what `decode` gives: threshold, suppression as cfg says, top-k."""
        if self.uses_nms and cfg.nms == "soft":
            return soft_suppress(candidates, conf_thresh, cfg.nms_sigma, topk)
        return suppress(candidates, conf_thresh, cfg.nms_iou if self.uses_nms else None, topk)

    @abstractmethod
    def decoding(self) -> dict[str, Any]:
        """Plain values that `decoder` needs beside the raw maps."""

    def details(self) -> dict[str, Any]:
        """Plain values that a user of an exported file may want to know."""
        return {"stride": self.stride}

    def auxiliary(self) -> Auxiliary | None:
        """A fresh module that helps this network learn and is no part of it; None for networks that learn alone."""
        return None


class Auxiliary(nn.Module, ABC):
    """What only training has of a network: it turns what `forward` gives in training mode into further raw maps.

    It belongs to the criterion's state: learned, saved and resumed with it, and never counted, averaged or exported.
    """

    @abstractmethod
    def forward(self, preds: Preds) -> Preds:
        """What the network gave in training mode to what the criterion takes besides."""

    def set_progress(self, epoch: int) -> None:
        """Called before each epoch with the number of those that are finished."""


@runtime_checkable
class Counted(Protocol):
    """A module that multiplies otherwise than by convolutions and linear layers of its own."""

    def extra_macs(self, *inputs: Tensor) -> int:
        """Multiply-adds of one call with these inputs, beside those of its layers."""
        ...


@runtime_checkable
class Foldable(Protocol):
    """A module with batch norms that can be folded, but are not directly behind a convolution of a Sequential."""

    def folded(self) -> nn.Module:
        """What computes the same in evaluation mode, without batch norms."""
        ...


class SplitDetector(Detector):
    """A detector most of which treats each picture alone, so that training can do it a few pictures at a time.

    part is the number of pictures at once. What mixes the pictures of a batch, such as batch norm, belongs to `embed`.
    """

    part: int

    @abstractmethod
    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """[B,3,H,W] to what `attend` starts from: tokens [B,N,d], and the grid (h, w) of the last of them."""

    @abstractmethod
    def attend(self, tokens: Tensor, grid: tuple[int, int]) -> Preds:
        """The rest of `forward`, for some or all of the pictures."""

    def forward(self, images: Tensor) -> Preds:
        """[B,3,H,W] to the raw maps."""
        return self.attend(*self.embed(images))


def fold_batchnorm(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose batch norms are folded into the convolutions before them."""
    model = copy.deepcopy(model).eval()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Foldable):
                setattr(module, name, child.folded())
    for module in model.modules():
        if not isinstance(module, nn.Sequential):
            continue
        children = list(module.named_children())
        for (conv_name, conv), (bn_name, bn) in itertools.pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d):
                setattr(module, conv_name, fuse_conv_bn_eval(conv, bn))
                setattr(module, bn_name, nn.Identity())
    return model


def count_parameters(model: nn.Module) -> int:
    """Number of learnable values."""
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def count_macs(model: nn.Module, height: int, width: int) -> int:
    """Multiply-adds for one picture: of convolutions and linear layers, and what modules count by `extra_macs`.

    A module that multiplies otherwise, such as attention, has a method `extra_macs(*inputs) -> int`.
    """
    total = 0

    def add(module: nn.Module, _: object, output: Tensor) -> None:
        nonlocal total
        weight = module.weight
        assert isinstance(weight, Tensor)
        total += output.numel() // output.shape[1 if output.dim() == 4 else -1] * weight.numel()

    def add_extra(module: nn.Module, inputs: tuple[Tensor, ...], _: object) -> None:
        nonlocal total
        total += cast(Counted, module).extra_macs(*inputs)

    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    hooks += [m.register_forward_hook(add_extra) for m in model.modules() if isinstance(m, Counted)]
    was_training = model.training
    try:
        parameter = next(model.parameters())
        model.eval()(torch.zeros(1, 3, height, width, device=parameter.device, dtype=parameter.dtype))
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return total
