"""What is trained: a network and the criterion that judges it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from uhd import dist
from uhd.config import Config
from uhd.dist import Total, own
from uhd.losses import SeparableCriterion, build_criterion
from uhd.models import Auxiliary, Detector, Preds, SplitDetector
from uhd.types import Targets

Terms = dict[str, Tensor]
Backward = Callable[[Tensor], None]
"""Adds the gradient of a loss to that of the weights."""
Extra = Callable[[Preds, slice], Terms]
"""Further terms of the raw maps of some rows of a batch, as their share of the batch's."""


def sum_terms(terms: Terms) -> Tensor:
    """The loss."""
    return torch.stack(list(terms.values())).sum()


class DetectionTask(nn.Module):
    """A student and its criterion; the training step knows nothing else.

    What helps the student learn and is no part of it (`Auxiliary`) belongs to the criterion's state.
    use_amp: the network is run in mixed precision while it learns, float16 on CUDA and bfloat16 on the CPU.
    """

    def __init__(self, student: Detector, criterion: nn.Module, *, use_amp: bool = False) -> None:
        super().__init__()
        self.student = student
        self.criterion = criterion
        self.use_amp = use_amp

    def forward(self, images: Tensor, targets: Targets) -> Terms:
        """[B,3,H,W] in 0..1 to weighted scalar terms; the loss is their sum."""
        return self.terms(self._preds(images), targets)

    def set_progress(self, epoch: int) -> None:
        """Called before each epoch with the number of those that are finished."""
        if self.auxiliary is not None:
            self.auxiliary.set_progress(epoch)

    @property
    def auxiliary(self) -> Auxiliary | None:
        """What helps the student learn; None for most."""
        found = getattr(self.criterion, "auxiliary", None)
        assert found is None or isinstance(found, Auxiliary)
        return found

    def _preds(self, images: Tensor) -> Preds:
        """The student's raw maps, in training with those that help it."""
        preds: Preds = self.student(images)
        if self.training and self.auxiliary is not None:
            preds = preds | self.auxiliary(preds)
        return preds

    def terms(self, preds: Preds, targets: Targets, total: Total = own) -> Terms:
        """The weighted terms of raw maps that were computed elsewhere (validation with the averaged weights).

        total: how the batch's positives are counted where it is a part of one that several processes share.
        """
        terms: Terms = self.criterion(preds, targets, total)
        return terms

    def learn(self, images: Tensor, targets: Targets, backward: Backward) -> Terms:
        """The terms of a batch, detached; their gradient is added to the weights' by one or more calls of backward.

        Where several processes share the batch, terms and gradients of them all add up to the batch's.
        """
        return self._learn(images, targets, backward, None)

    def _learn(self, images: Tensor, targets: Targets, backward: Backward, extra: Extra | None) -> Terms:
        """The same with terms beside the criterion's."""
        # Elsewhere than on the CPU the whole batch at once is what keeps the device busy.
        if isinstance(self.student, SplitDetector) and images.device.type == "cpu" and len(images) > self.student.part:
            assert isinstance(self.criterion, SeparableCriterion)
            return self._learn_in_parts(self.student, self.criterion, (images, targets), backward, extra)
        with self.autocast(images):
            preds = self._preds(images)
            terms = self.terms(preds, targets, dist.total) | (extra(preds, slice(None)) if extra else {})
        backward(sum_terms(terms))
        return {name: value.detach() for name, value in terms.items()}

    def _learn_in_parts(
        self,
        student: SplitDetector,
        criterion: SeparableCriterion,
        batch: tuple[Tensor, Targets],
        backward: Backward,
        extra: Extra | None,
    ) -> Terms:
        """The same, where most of the network sees a few pictures at a time: its activations fit the cache.

        The gradient is that of the whole batch. What mixes pictures (`embed`) runs once on all of them; the rest treats
        each picture alone, and each part's terms are brought from the part's divisor to the batch's before they are
        differentiated. The parts' gradients meet at the tokens, from where they go back through `embed` at once.
        """
        images, targets = batch
        with self.autocast(images):
            tokens, grid = student.embed(images)
        leaf = tokens.detach().requires_grad_()
        divisor = criterion.normaliser(targets, dist.total)
        summed: Terms = {}
        for start in range(0, len(images), student.part):
            rows = slice(start, start + student.part)
            part = targets.rows(rows)
            with self.autocast(images):
                preds = student.attend(leaf[rows], grid)
                terms = self.terms(preds, part)
                further = extra(preds, rows) if extra else {}
            share = criterion.normaliser(part) / divisor
            terms = {name: value * share for name, value in terms.items()} | further
            backward(sum_terms(terms))
            for name, value in terms.items():
                summed[name] = summed[name] + value.detach() if name in summed else value.detach()
        tokens.backward(leaf.grad)  # type: ignore[no-untyped-call]
        return summed

    def autocast(self, images: Tensor) -> AbstractContextManager[None]:
        """The precision in which networks look at these images while one learns."""
        kind = images.device.type
        dtype = torch.float16 if kind == "cuda" else torch.bfloat16
        return torch.autocast(kind, dtype=dtype, enabled=self.use_amp)


def build_task(cfg: Config, student: Detector) -> DetectionTask:
    """The task of a resolved config."""
    criterion = build_criterion(cfg.model, cfg.loss, cfg.assign)
    auxiliary = student.auxiliary()
    if auxiliary is not None:
        criterion.add_module("auxiliary", auxiliary)
    return DetectionTask(student, criterion, use_amp=cfg.optim.use_amp)
