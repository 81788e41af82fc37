"""Bringing pictures that a teacher sees to the size that its student sees, as `uhd.data.resize` does it on a device."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from uhd.config import ResizeMode


def resize_batch(images: Tensor, size: tuple[int, int], mode: ResizeMode) -> Tensor:
    """Images [B,3,H,W] in 0..1 stretched to size (height, width), rounded to the 256 levels of a picture.

    Training pictures are as large as the largest size that any network sees, so that averaging areas only reduces.
    """
    if images.shape[2:] == size:
        return images
    with torch.autocast(images.device.type, enabled=False):
        return _resized(images, size, mode)


def _resized(images: Tensor, size: tuple[int, int], mode: ResizeMode) -> Tensor:
    if mode == "opencv_inter_area":
        resized = _average(images, size)
    elif mode in ("opencv_inter_nearest", "torch_nearest"):
        resized = F.interpolate(images, size=size, mode="nearest")
    else:
        resized = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
    return (resized * 255).round() / 255


def _average(images: Tensor, size: tuple[int, int]) -> Tensor:
    """The mean over the area that each pixel of the result covers; where it enlarges, bilinear."""
    if all(old % new == 0 for old, new in zip(images.shape[2:], size, strict=True)):
        return F.avg_pool2d(images, (images.shape[2] // size[0], images.shape[3] // size[1]))
    images = images.double()  # a matrix product of float32 is of fewer digits on some devices
    down, across = (_shares(old, new, images) for old, new in zip(images.shape[2:], size, strict=True))
    return (down @ images @ across.T).float()


def _shares(old: int, new: int, like: Tensor) -> Tensor:
    """[new,old]: the share of each old pixel in each new one, along one side."""
    if new > old:
        line = torch.eye(old, dtype=like.dtype, device=like.device)
        return F.interpolate(line[None], size=new, mode="linear", align_corners=False)[0].T
    edges = torch.arange(new + 1, dtype=torch.float64, device=like.device) * (old / new)
    pixels = torch.arange(old, dtype=torch.float64, device=like.device)
    covered = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)
    return (covered.clamp(min=0) * (new / old)).to(like.dtype)
