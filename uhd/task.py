"""What is trained: a network and the criterion that judges it."""

from __future__ import annotations

from torch import Tensor, nn

from uhd.config import Config
from uhd.losses import build_criterion
from uhd.models import Detector, Preds
from uhd.types import Targets

Terms = dict[str, Tensor]


class DetectionTask(nn.Module):
    """A student and its criterion; the training step knows nothing else."""

    def __init__(self, student: Detector, criterion: nn.Module) -> None:
        super().__init__()
        self.student = student
        self.criterion = criterion

    def forward(self, images: Tensor, targets: Targets) -> Terms:
        """[B,3,H,W] in 0..1 to weighted scalar terms; the loss is their sum."""
        return self.terms(self.student(images), targets)

    def terms(self, preds: Preds, targets: Targets) -> Terms:
        """The weighted terms of raw maps that were computed elsewhere (validation with the averaged weights)."""
        terms: Terms = self.criterion(preds, targets)
        return terms


def build_task(cfg: Config, student: Detector) -> DetectionTask:
    """The task of a resolved config."""
    criterion = build_criterion(cfg.model, student.raw_names[0], cfg.loss, cfg.assign)
    return DetectionTask(student, criterion)
