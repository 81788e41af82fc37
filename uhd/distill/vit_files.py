"""Weights of vision transformers in files: read as tensors only, under the official DINOv3 names, of known shapes.

The names and shapes are those of the DINOv3 release (arXiv:2508.10104, github.com/facebookresearch/dinov3); a plain ViT
(arXiv:2010.11929) with learned position embeddings has timm's names, which are the same but for the embeddings.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from uhd.reading import why_not_plain
from uhd.tensor_file import load_tensors

BackboneArch = Literal["dinov3_vits16", "dinov3_vitb16", "vit_tiny"]
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Size:
    """What the sizes of ViT differ in; patches of 16x16 pixels, 12 blocks and an MLP of ratio 4 are common to all."""

    width: int
    heads: int


SIZES: dict[BackboneArch, Size] = {
    "dinov3_vits16": Size(384, 6),
    "dinov3_vitb16": Size(768, 12),
    "vit_tiny": Size(192, 3),
}
PATCH = 16
DEPTH = 12
MLP_RATIO = 4
STORAGE = 4
"""Storage tokens of a DINOv3 model, called registers elsewhere."""

FIRST = "patch_embed.proj.weight"
"""The entry that every ViT has; what stands before it in a file is a prefix of all names."""

PERIODS = "rope_embed.periods"
USED = re.compile(r"(blocks|patch_embed|norm_pre)\.|rope|pos_embed$|(?!mask_)\w+_tokens?$")
"""Names of entries that change what a ViT computes; others, such as heads and mask tokens, have no part in it."""

_MOST_BYTES = 2**30
"""Of the tensors of a small file; those of the largest architecture here have a third of it."""

TIMM = {"reg_token", "blocks.0.gamma_1", "blocks.0.attn.q_bias"}
"""Entries by which timm's naming of a DINOv3 model is known."""

WRAPPERS = ("state_dict", "model", "module")


def read_vit(path: Path | str, arch: BackboneArch) -> Weights:
    """The float32 weights of a file that fit the architecture, under official names; other entries are left out.

    ValueError of one line, which names the flag and the file: no such file, no tensors in it, another network.
    """
    where = f"--teacher-backbone {path}"
    try:
        weights = official_names(_only_vit(_tensors(_load(Path(path)))))
        wrong = mismatch(weights, arch)
        if wrong:
            fitting = [other for other in SIZES if not mismatch(weights, other)]
            raise ValueError(f"{wrong} for {arch}" + (f" ({fitting[0]} fits)" if fitting else ""))
        chosen = {name: value.float() for name, value in weights.items() if name in expected_shapes(weights, arch)}
        spoilt = next((name for name, value in chosen.items() if not value.isfinite().all()), None)
        if spoilt:
            raise ValueError(f"{spoilt} holds values that are not finite")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return chosen


def expected_shapes(weights: Weights, arch: BackboneArch) -> dict[str, tuple[int, ...]]:
    """The shape of each entry that a file is to hold, and of those it may hold and does.

    A DINOv3 model has all of the official release. vit_tiny has what the entries of the file say: learned position
    embeddings or RoPE, with or without storage tokens, a distillation token, LayerScale, qkv biases and a final norm.
    """
    width = SIZES[arch].width
    hidden = MLP_RATIO * width
    vector = (width,)
    tiny = arch == "vit_tiny"

    def has(name: str) -> bool:
        return not tiny or name in weights

    shapes: dict[str, tuple[int, ...]] = {
        FIRST: (width, 3, PATCH, PATCH),
        "patch_embed.proj.bias": vector,
        "cls_token": (1, 1, width),
    }
    if tiny and not is_rotary(weights):
        tokens = 1 + ("dist_token" in weights)
        side = position_side(weights)
        shapes |= {"pos_embed": (1, tokens + side * side, width)}
        shapes |= {"dist_token": (1, 1, width)} if tokens == 2 else {}
    else:
        shapes |= {"storage_tokens": (1, STORAGE, width)} if has("storage_tokens") else {}
        shapes |= {PERIODS: (width // SIZES[arch].heads // 4,)} if PERIODS in weights else {}
    block = {
        "norm1.weight": vector,
        "norm1.bias": vector,
        "attn.qkv.weight": (3 * width, width),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": vector,
        "norm2.weight": vector,
        "norm2.bias": vector,
        "mlp.fc1.weight": (hidden, width),
        "mlp.fc1.bias": (hidden,),
        "mlp.fc2.weight": (width, hidden),
        "mlp.fc2.bias": vector,
    }
    block |= {"attn.qkv.bias": (3 * width,)} if has("blocks.0.attn.qkv.bias") else {}
    masked = is_rotary(weights) and "blocks.0.attn.qkv.bias_mask" in weights
    block |= {"attn.qkv.bias_mask": (3 * width,)} if masked else {}
    block |= {"ls1.gamma": vector, "ls2.gamma": vector} if has("blocks.0.ls1.gamma") else {}
    for i in range(DEPTH):
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    if has("norm.weight") or not is_rotary(weights):
        shapes |= {"norm.weight": vector, "norm.bias": vector}
    return shapes


def mismatch(weights: Weights, arch: BackboneArch) -> str:
    """The first thing in which the weights are not those of the architecture; empty where they are."""
    width = SIZES[arch].width
    expected = expected_shapes(weights, arch)
    for name, shape in expected.items():
        found = list(weights[name].shape) if name in weights else None
        if found is None:
            return f"holds no {name}; expected {list(shape)}"
        if name == FIRST and found[0] != width and found[1:] == list(shape[1:]):
            return f"{name} is {found}, a ViT of width {found[0]}; expected {list(shape)}"
        if found != list(shape):
            return f"{name} is {found}; expected {list(shape)}"
    unexpected = next((name for name in weights if name not in expected and USED.match(name)), "")
    return f"holds {unexpected}; expected none" if unexpected else ""


def is_rotary(weights: Weights) -> bool:
    """Whether places are told by RoPE, as in DINOv3, not by learned position embeddings."""
    return "pos_embed" not in weights


def position_side(weights: Weights) -> int:
    """Side of the square grid that a ViT's position embeddings are for, in patches; as near as one comes to them."""
    shape = weights["pos_embed"].shape
    tokens = 1 + ("dist_token" in weights)
    return round(max(1, shape[1] - tokens) ** 0.5) if len(shape) == 3 else 14


def official_names(weights: Weights) -> Weights:
    """Entries that are named as in timm's DINOv3 models, and in part split or left out there, as the release has them.

    timm keeps no bias of the keys, which is zero in the release, and no biases at all where all are zero.
    """
    if not TIMM & weights.keys():
        return weights
    renamed = {}
    for name, value in weights.items():
        for theirs, official in (("reg_token", "storage_tokens"), ("gamma_1", "ls1.gamma"), ("gamma_2", "ls2.gamma")):
            name = name.replace(theirs, official)
        renamed[name] = value
    for name in [name for name in renamed if name.endswith("attn.qkv.weight")]:
        bias = renamed[name].new_zeros(len(renamed[name]))
        queries, values = (renamed.pop(name.replace("qkv.weight", part), None) for part in ("q_bias", "v_bias"))
        if queries is not None and values is not None:
            bias = torch.cat([queries, torch.zeros_like(queries), values])
        renamed.setdefault(name.replace("weight", "bias"), bias)
    return renamed


def _load(path: Path) -> Any:
    """What a file holds, loaded without running any code in it; its tensors are no larger than the file."""
    reason = why_not_plain(path)
    if reason:
        raise ValueError(reason)
    try:
        if path.suffix == ".safetensors":
            from safetensors import SafetensorError
            from safetensors.torch import load_file

            try:
                return load_file(path)
            except SafetensorError as error:
                raise ValueError(" ".join(str(error).split())[:120]) from None
        return load_tensors(path, old=True, allowance=_MOST_BYTES)
    except (ValueError, OSError) as error:
        text = error.strerror if isinstance(error, OSError) else str(error)
        raise ValueError(f"cannot be read ({text})") from None


def _tensors(content: Any) -> Weights:
    """The tensors by name, out of what training programs wrap around them."""
    while isinstance(content, dict) and any(isinstance(content.get(key), dict) for key in WRAPPERS):
        content = next(content[key] for key in WRAPPERS if isinstance(content.get(key), dict))
    if isinstance(content, dict):
        found = {name: value for name, value in content.items() if isinstance(value, Tensor) and isinstance(name, str)}
        if found:
            return found
    raise ValueError("not a state dict of tensors")


def _only_vit(weights: Weights) -> Weights:
    """The entries of the one ViT, without the prefix that a wrapping module gave their names."""
    prefixes = [name.removesuffix(FIRST) for name in weights if re.fullmatch(rf"(.+\.)?{re.escape(FIRST)}", name)]
    if len(prefixes) != 1:
        found = f"{len(prefixes)} entries of" if prefixes else "no"
        raise ValueError(f"holds {found} {FIRST}; expected one vision transformer under its official or timm's names")
    prefix = prefixes[0]
    inner = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    return {PERIODS if name in ("rope.periods", "rope_embed.periods") else name: inner[name] for name in inner}
