"""Frozen vision transformers as teachers of features: DINOv3 S/16 and B/16, and ViT-Tiny/16, by timm, from a file.

timm models: `vit_small_patch16_dinov3_qkvb` and `vit_base_patch16_dinov3_qkvb` (class Eva) for the DINOv3 sizes and,
with the width and heads of the tiny one, for a vit_tiny file with RoPE; `vit_tiny_patch16_224` or, with a distillation
token, `deit_tiny_distilled_patch16_224` for a vit_tiny file with position embeddings. Nothing is downloaded.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uhd.distill.vit_files import (
    PATCH,
    PERIODS,
    SIZES,
    STORAGE,
    BackboneArch,
    Weights,
    is_rotary,
    position_side,
    read_vit,
)

__all__ = ["BackboneArch", "BackboneNorm", "BackboneTeacher", "load_backbone"]

BackboneNorm = Literal["imagenet", "none"]
MEANS: dict[BackboneNorm, tuple[float, float, float]] = {"imagenet": (0.485, 0.456, 0.406), "none": (0, 0, 0)}
DEVIATIONS: dict[BackboneNorm, tuple[float, float, float]] = {"imagenet": (0.229, 0.224, 0.225), "none": (1, 1, 1)}
ROPE_BASE = 100.0


class BackboneTeacher(nn.Module):
    """A frozen ViT that sees the student's images at the size that gives the wanted grid of patches.

    It stays in evaluation mode, whatever train() says, and gives no gradients, neither to itself nor to the images.
    """

    vit: Any
    mean: Tensor
    deviation: Tensor

    def __init__(self, vit: Any, norm: BackboneNorm) -> None:
        super().__init__()
        self.vit = vit
        self.width: int = vit.embed_dim
        """Channels F of the feature map."""
        self.register_buffer("mean", torch.tensor(MEANS[norm]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATIONS[norm]).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> BackboneTeacher:
        """Evaluation mode in either case: a frozen network has no other."""
        del mode
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """RGB images [B,3,H,W] of 0..1 and a grid (h, w) to the patch tokens after the last norm, [B,F,h,w].

        The images are stretched to 16h x 16w, with smoothing where that is smaller than they are.
        """
        rows, columns = grid
        size = (PATCH * rows, PATCH * columns)
        x = (images - self.mean) / self.deviation
        if x.shape[2:] != size:
            shrinks = size[0] < x.shape[2] or size[1] < x.shape[3]
            x = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=shrinks)
        tokens: Tensor = self.vit.forward_features(x)[:, self.vit.num_prefix_tokens :]
        return tokens.transpose(1, 2).reshape(len(images), self.width, rows, columns)


def load_backbone(path: Path | str, arch: BackboneArch, norm: BackboneNorm = "imagenet") -> BackboneTeacher:
    """The teacher with the weights of a file, on the CPU, as float32.

    `norm` says how its images were normalised: by ImageNet's mean and deviation, or not at all.
    ValueError of one line, which names the flag and the file, where that holds no such network.
    """
    weights = read_vit(path, arch)
    vit = _rotary(weights, arch) if is_rotary(weights) else _with_positions(weights)
    return BackboneTeacher(vit, norm)


def _rotary(weights: Weights, arch: BackboneArch) -> Any:
    """timm's DINOv3 model. What timm does not take from a file, keys' biases and RoPE's periods, is set here.

    The release stores periods that were rounded to bfloat16, and its own code computes with them.
    """
    size = SIZES[arch]
    chosen: dict[str, Any] = {}
    if arch == "vit_tiny":
        has_storage, has_scale = "storage_tokens" in weights, "blocks.0.ls1.gamma" in weights
        chosen = {
            "num_reg_tokens": STORAGE if has_storage else 0,
            "init_values": 1.0 if has_scale else None,
            "use_post_transformer_norm": "norm.weight" in weights,
            # DINOv3's norms have 1e-5, those of a plain ViT 1e-6.
            "norm_layer": partial(nn.LayerNorm, eps=1e-5 if has_storage else 1e-6),
        }
    model = "vit_base_patch16_dinov3_qkvb" if arch == "dinov3_vitb16" else "vit_small_patch16_dinov3_qkvb"
    vit = _empty(model, embed_dim=size.width, num_heads=size.heads, **chosen)
    own, key_biases = timm_names(weights)
    vit.load_state_dict(own, assign=True)
    for name, bias in key_biases.items():
        vit.get_submodule(name).k_bias = bias
    quarter = size.width // size.heads // 4
    periods = weights.get(PERIODS)
    vit.rope.periods = ROPE_BASE ** (torch.arange(quarter) / quarter) if periods is None else periods
    return vit


def _with_positions(weights: Weights) -> Any:
    """timm's plain ViT-Tiny, whose position embeddings are resampled to each grid."""
    name = "deit_tiny_distilled_patch16_224" if "dist_token" in weights else "vit_tiny_patch16_224"
    vit = _empty(
        name,
        img_size=PATCH * position_side(weights),
        dynamic_img_size=True,
        qkv_bias="blocks.0.attn.qkv.bias" in weights,
        init_values=1.0 if "blocks.0.ls1.gamma" in weights else None,
    )
    vit.load_state_dict(weights, assign=True)
    return vit


def _empty(name: str, **chosen: Any) -> Any:
    """A model of timm without values: nothing is drawn, so that the run's random numbers stay as they are."""
    import timm

    with torch.device("meta"):
        return timm.model_entrypoint(name)(pretrained=False, num_classes=0, **chosen)  # keeps what is None


def timm_names(weights: Weights) -> tuple[Weights, Weights]:
    """Official names to those of timm's Eva; and the keys' bias, which is no parameter there, by attention module."""
    own: Weights = {}
    key_biases: Weights = {}
    for name, value in weights.items():
        if name.endswith(".attn.qkv.weight"):
            own[name] = value
            bias = weights.get(name.replace("weight", "bias"), torch.zeros(len(value)))
            mask = weights.get(name.replace("weight", "bias_mask"), torch.ones(len(value)))
            attn = name.removesuffix(".qkv.weight")
            own[f"{attn}.q_bias"], key_biases[attn], own[f"{attn}.v_bias"] = (bias * mask).chunk(3)
        elif name != PERIODS and ".attn.qkv." not in name:
            for official, theirs in (
                ("storage_tokens", "reg_token"),
                ("ls1.gamma", "gamma_1"),
                ("ls2.gamma", "gamma_2"),
            ):
                name = name.replace(official, theirs)
            own[name] = value
    return own, key_biases
