"""Teachers: frozen networks that say what they see in a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from uhd.config import ResizeMode
from uhd.distill.resize import resize_batch
from uhd.distill.views import Preds


class NetworkTeacher(nn.Module):
    """A detector that only looks: never in training mode, without gradients.

    size (height, width) and mode: what it sees of a picture.
    """

    def __init__(self, model: nn.Module, size: tuple[int, int], mode: ResizeMode) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.size = size
        self.mode = mode

    def train(self, mode: bool = True) -> NetworkTeacher:
        """Stays in evaluation mode."""
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Preds:
        """Raw maps and features of pictures [B,3,H,W] in 0..1 of any size."""
        preds: Preds = self.model(resize_batch(images, self.size, self.mode))
        return preds
