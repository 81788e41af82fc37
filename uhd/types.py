"""What travels between the parts.

Shape letters used everywhere: B batch, H W image, h w grid, A anchors per cell, N = A*h*w priors,
G truths, C classes, K detections, M the largest number of truths in a batch.

Boxes are xyxy, normalised to 0..1, float32. torch is imported for the type checker only, so that
parts that must run without it can use the constants.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PADDING = -1
"""Label of a row that is no box (in Targets and Detections)."""
IGNORED = -2
"""Label of a truth that augmentation took away, or of a crowd: its place is taught neither as person nor background."""


@dataclass
class Targets:
    """The truths of a batch, padded to one size.

    boxes [B,M,4], labels [B,M] int64 (class, PADDING or IGNORED), image_ids [B] int64 (index in
    the data set), sizes [B,2] int64 (height, width of the original pictures in pixels).
    """

    boxes: Tensor
    labels: Tensor
    image_ids: Tensor
    sizes: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> Targets:
        """The same truths on a device; image_ids and sizes, which no network learns from, stay on the host."""
        boxes, labels = (value.to(device, non_blocking=non_blocking) for value in (self.boxes, self.labels))
        return Targets(boxes, labels, self.image_ids, self.sizes)

    def rows(self, rows: slice) -> Targets:
        """The truths of some pictures."""
        return Targets(*(getattr(self, f.name)[rows] for f in fields(self)))

    def pin_memory(self) -> Targets:
        """The same truths in page-locked memory; called by the loader."""
        return Targets(*(getattr(self, f.name).pin_memory() for f in fields(self)))


@dataclass
class Detections:
    """boxes [B,K,4], scores [B,K] descending, labels [B,K] int64 (PADDING where there is none, score 0)."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


@dataclass
class Assignment:
    """What each prior learns: truth [B,N] int64 (row of Targets, -1 for background) and quality [B,N] in 0..1.

    quality is the target that stands for the IoU of a positive; nan where the assigner leaves it to
    the IoU of the prediction itself.
    """

    truth: Tensor
    quality: Tensor | None = None
