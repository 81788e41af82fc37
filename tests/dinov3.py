"""A vision transformer in plain PyTorch, as the DINOv3 release defines it, and random weights under its names.

Written from the paper and the release's own code alone, so that what timm computes can be held against it.
"""

import math

import torch
from torch.nn import functional as F

HEAD = 64
KEYS_MASKED = (1.0, 0.0, 1.0)


def official_shapes(width, *, depth=12, storage=4, masked=True):
    """Every entry of an official file in its order, with its shape."""
    shapes = {
        "cls_token": (1, 1, width),
        "storage_tokens": (1, storage, width),
        "mask_token": (1, width),
        "rope_embed.periods": (HEAD // 4,),
        "patch_embed.proj.weight": (width, 3, 16, 16),
        "patch_embed.proj.bias": (width,),
    }
    for i in range(depth):
        shapes |= {
            f"blocks.{i}.norm1.weight": (width,),
            f"blocks.{i}.norm1.bias": (width,),
            f"blocks.{i}.attn.qkv.weight": (3 * width, width),
            f"blocks.{i}.attn.qkv.bias": (3 * width,),
            f"blocks.{i}.attn.qkv.bias_mask": (3 * width,),
            f"blocks.{i}.attn.proj.weight": (width, width),
            f"blocks.{i}.attn.proj.bias": (width,),
            f"blocks.{i}.ls1.gamma": (width,),
            f"blocks.{i}.norm2.weight": (width,),
            f"blocks.{i}.norm2.bias": (width,),
            f"blocks.{i}.mlp.fc1.weight": (4 * width, width),
            f"blocks.{i}.mlp.fc1.bias": (4 * width,),
            f"blocks.{i}.mlp.fc2.weight": (width, 4 * width),
            f"blocks.{i}.mlp.fc2.bias": (width,),
            f"blocks.{i}.ls2.gamma": (width,),
        }
    return shapes | {"norm.weight": (width,), "norm.bias": (width,)}


def plain_shapes(width, side, *, distilled=False):
    """Every entry of a plain ViT with position embeddings of side x side patches, as timm and DeiT name them."""
    left_out = ("storage", "mask_token", "rope", "bias_mask", "gamma")
    shapes = {
        name: shape for name, shape in official_shapes(width).items() if not any(part in name for part in left_out)
    }
    shapes |= {"dist_token": (1, 1, width)} if distilled else {}
    tokens = side * side + 1 + distilled
    return shapes | {"pos_embed": (1, tokens, width), "head.weight": (10, width), "head.bias": (10,)}


def random_state(shapes, seed=0):
    """Weights with which every part of the network shows in its output: also the key bias, where it is not masked."""
    draw = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=draw)
        if name == "rope_embed.periods":
            values = periods().bfloat16().float()
        elif name.endswith("bias_mask"):
            values = torch.tensor(KEYS_MASKED).repeat_interleave(shape[0] // 3)
        elif name.endswith("gamma") or ("norm" in name and name.endswith("weight")):
            values = 0.6 + 0.1 * values
        elif len(shape) > 1 and name.endswith("weight"):
            values = values * (1.5 / math.sqrt(math.prod(shape[1:])))
        else:
            values = 0.5 * values
        state[name] = values
    return state


def hollow(shapes):
    """Entries of these shapes that take no room in memory or in a file."""
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


def periods(base=100.0):
    """RoPE's period of each of the head's quarter of channels: base ** (2i / (head / 2))."""
    return base ** (2 * torch.arange(HEAD // 4) / (HEAD // 2))


def rope(rows, columns, wavelengths):
    """Angles [rows * columns, head]: rows in the first quarter, columns in the second, and both again."""
    down = 2 * (torch.arange(rows) + 0.5) / rows - 1
    right = 2 * (torch.arange(columns) + 0.5) / columns - 1
    angles = [
        torch.cat([2 * math.pi * y / wavelengths, 2 * math.pi * x / wavelengths]).repeat(2) for y in down for x in right
    ]
    return torch.stack(angles)


def rotate(tokens, angles):
    """Turns channel i of a head's first half against channel i of its second half."""
    first, second = tokens.chunk(2, dim=-1)
    return tokens * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin()


def layer_norm(x, state, name, eps):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def patch_tokens(state, images, eps=1e-5):
    """x_norm_patchtokens of normalised images [B,3,H,W], as a map [B,F,H/16,W/16]; the state says what the net has."""
    x = F.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=16)
    batch, width, rows, columns = x.shape
    x = x.flatten(2).transpose(1, 2)
    leading = [state[name] for name in ("cls_token", "dist_token", "storage_tokens") if name in state]
    x = torch.cat([*(token.expand(batch, -1, -1) for token in leading), x], dim=1)
    prefix = x.shape[1] - rows * columns
    angles = None
    if "pos_embed" in state:
        x = x + positions(state["pos_embed"], prefix, rows, columns)
    else:
        angles = rope(rows, columns, state.get("rope_embed.periods", periods()))
    for i in range(12):
        x = block(x, {name.removeprefix(f"blocks.{i}."): v for name, v in state.items()}, angles, prefix, eps)
    x = layer_norm(x, state, "norm", eps) if "norm.weight" in state else x
    return x[:, prefix:].transpose(1, 2).reshape(batch, width, rows, columns)


def positions(embedding, prefix, rows, columns):
    """Position embeddings of a square grid, those of the patches stretched to another grid."""
    side = math.isqrt(embedding.shape[1] - prefix)
    places = embedding[:, prefix:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    if (rows, columns) != (side, side):
        places = F.interpolate(places, (rows, columns), mode="bicubic", antialias=True)
    return torch.cat([embedding[:, :prefix], places.flatten(2).transpose(1, 2)], dim=1)


def block(x, own, angles, prefix, eps):
    """One pre-norm block: attention and MLP, each scaled by its LayerScale where it has one."""
    x = x + own.get("ls1.gamma", 1) * attention(layer_norm(x, own, "norm1", eps), own, angles, prefix)
    hidden = F.gelu(F.linear(layer_norm(x, own, "norm2", eps), own["mlp.fc1.weight"], own["mlp.fc1.bias"]))
    return x + own.get("ls2.gamma", 1) * F.linear(hidden, own["mlp.fc2.weight"], own["mlp.fc2.bias"])


def attention(x, own, angles, prefix):
    batch, tokens, width = x.shape
    bias = own["attn.qkv.bias"] * own.get("attn.qkv.bias_mask", 1) if "attn.qkv.bias" in own else None
    qkv = F.linear(x, own["attn.qkv.weight"], bias).reshape(batch, tokens, 3, width // HEAD, HEAD)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    if angles is not None:
        q, k = (torch.cat([part[:, :, :prefix], rotate(part[:, :, prefix:], angles)], dim=2) for part in (q, k))
    weights = (q @ k.transpose(-2, -1) / math.sqrt(HEAD)).softmax(dim=-1)
    mixed = (weights @ v).transpose(1, 2).reshape(batch, tokens, width)
    return F.linear(mixed, own["attn.proj.weight"], own["attn.proj.bias"])
