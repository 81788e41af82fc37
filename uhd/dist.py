"""Devices."""

from __future__ import annotations

import torch


def setup(device: str | None) -> torch.device:
    """The device to train on: the one asked for, or cuda where there is one; ValueError where it is not there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: no CUDA device is available here; use --device cpu")
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    return torch.device(device)
