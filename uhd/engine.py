"""One epoch of training, and validation. Neither names an architecture or a loss term."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from uhd import dist
from uhd.config import Config
from uhd.data.loader import BatchLoader
from uhd.eval.coco import coco_metrics
from uhd.eval.mean_ap import Evaluation, MeanAP, to_metrics
from uhd.eval.samples import PaddedDetections, PaddedTruths, Samples
from uhd.models import Detector
from uhd.optim import MAX_BAD_STEPS, TrainState
from uhd.progress import progress_bar
from uhd.task import DetectionTask, Terms, sum_terms

MAP_DETECTIONS = 100
"""Detections a picture that mAP looks at, whatever --topk is."""

Check = Callable[[], None]
"""Called between steps; raises when a signal has asked the run to stop."""


@dataclass(frozen=True)
class Progress:
    """How a loop shows itself: its bar's title, the steps between updates and the stop check."""

    title: str
    interval: int
    check: Check


class TermMeans:
    """Means of the terms over an epoch, weighted by pictures, summed on the device."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.weight: Tensor | float = 0.0

    def add(self, terms: Terms, pictures: int, shared: int | None = None, finite: Tensor | None = None) -> None:
        """Takes a batch's terms, which may lie on a device and are not waited for; a step not `finite` is left out.

        pictures: that this process saw. shared: that all processes saw together, where the terms are this process's
        summands of the batch's.
        """
        weight = pictures if finite is None else finite.double() * pictures
        self.weight = self.weight + weight
        for name, value in (("loss", sum_terms(terms)), *terms.items()):
            value = value.detach().double() * (shared or pictures)
            value = value if finite is None else torch.where(finite, value, 0.0)
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def read(self) -> dict[str, float]:
        """The means so far, as far as this process knows them, `loss` first; 0 before the first finite step."""
        weight = max(float(self.weight), 1.0)
        return {name: float(value) / weight for name, value in self.sums.items()}

    def read_all(self) -> dict[str, float]:
        """The means over the pictures of all processes; called by each of them."""
        parts = dist.gather(({name: float(value) for name, value in self.sums.items()}, float(self.weight)))
        weight = max(sum(weight for _, weight in parts), 1.0)
        names = dict.fromkeys(name for sums, _ in parts for name in sums)
        return {name: sum(sums.get(name, 0.0) for sums, _ in parts) / weight for name in names}


def to_input(images: Tensor, device: torch.device) -> Tensor:
    """uint8 [B,H,W,3] from the loader to float [B,3,H,W] in 0..1, channels last in memory."""
    return images.to(device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255)


class FiniteGuard:
    """Watches for steps whose loss is not finite; looks only every few steps, so that the device is not waited for."""

    def __init__(self, state: TrainState) -> None:
        self.state = state
        zero = torch.zeros((), device=state.device)
        self.longest, self.total = zero, zero
        self.seen = 0
        self.unchecked: list[Terms] = []
        self.buffers = state.snapshot_buffers()

    def see(self, parts: list[Terms], finite: Tensor) -> None:
        """Notes one step, of which this process has these terms."""
        streak = torch.where(finite, 0.0, self.state.bad_streak + 1)
        self.state.bad_streak = streak
        self.longest = torch.maximum(self.longest, streak)
        self.total = self.total + ~finite
        self.unchecked += parts

    def check(self) -> None:
        """Repairs the batch-norm statistics after a bad step; FloatingPointError after too many in a row."""
        total = int(self.total)
        if float(self.longest) > MAX_BAD_STEPS:
            bad = [terms for terms in self.unchecked if not sum_terms(terms).isfinite()]
            shown = ", ".join(f"{name} {float(value):.4g}" for name, value in bad[-1].items()) if bad else "elsewhere"
            raise FloatingPointError(f"the loss was not finite for more than {MAX_BAD_STEPS} steps in a row ({shown})")
        self.unchecked.clear()
        if total > self.seen:
            self.seen = total
            self.state.restore_buffers(self.buffers)
        else:
            self.buffers = self.state.snapshot_buffers()


def train_one_epoch(
    task: DetectionTask, loader: BatchLoader, state: TrainState, progress: Progress
) -> dict[str, float | None]:
    """Trains the epoch after `state.epoch`; returns the means of the terms, lr, seconds and images a second."""
    task.train()
    device = state.device
    means, guard = TermMeans(), FiniteGuard(state)
    loader.set_epoch(state.epoch)
    task.set_progress(state.epoch)
    batches, pictures, lr, start = len(loader), 0, 0.0, time.perf_counter()
    step: list[Learned] = []
    bar = progress_bar(loader, progress.title, batches)
    for index, (images, targets) in enumerate(bar):
        progress.check()
        lr = state.set_lr(state.epoch + (index + 1) / batches)
        inputs, targets = to_input(images, device), targets.to(device, non_blocking=True)
        share = 1 / batches_in_step(index, batches, state.cfg.grad_accum)
        terms = task.learn(inputs, targets, partial(state.backward, share=share))
        step.append(Learned(terms, len(images), loader.pictures_in(index)))
        pictures += step[-1].shared
        is_last = index + 1 == batches
        if len(step) == state.cfg.grad_accum or is_last:
            finite = state.step(torch.stack([sum_terms(learned.terms).isfinite() for learned in step]).all())
            guard.see([learned.terms for learned in step], finite)
            for learned in step:
                means.add(learned.terms, learned.pictures, learned.shared, finite)
            step.clear()
        if index % min(progress.interval, MAX_BAD_STEPS) == 0 or is_last:
            guard.check()
        if index % progress.interval == 0:
            bar.set_postfix({name: f"{value:.3f}" for name, value in means.read().items()}, refresh=False)
    state.share_buffers()
    state.epoch += 1
    seconds = time.perf_counter() - start
    stats: dict[str, float | None] = {f"train/{name}": value for name, value in means.read_all().items()}
    stats |= {"lr": lr, "seconds": seconds, "images_per_second": pictures / seconds}
    if skipped := guard.seen:
        stats["train/skipped_steps"] = skipped
    return stats


@dataclass(frozen=True)
class Learned:
    """What came of a batch: this process's terms, its pictures, and those of all processes."""

    terms: Terms
    pictures: int
    shared: int


def batches_in_step(index: int, batches: int, grad_accum: int) -> int:
    """How many batches the step of a batch is made of: --grad-accum, or what is left at the end of an epoch."""
    return min(grad_accum, batches - index // grad_accum * grad_accum)


@dataclass(frozen=True)
class Validation:
    """What a validation found: metrics by their logged names, the figures behind them, and all detections."""

    metrics: dict[str, float | None]
    evaluation: Evaluation
    samples: Samples


@torch.no_grad()
def evaluate(model: Detector, task: DetectionTask, loader: BatchLoader, cfg: Config, progress: Progress) -> Validation:
    """Terms, mAP and all that is reported, in float32, for the model's weights on a validation loader.

    Each process looks at its part of the pictures; all get the figures of the whole (COCO's, the first alone).
    """
    model.eval()
    task.eval()
    device = next(model.parameters()).device
    means = TermMeans()
    metric = MeanAP(len(cfg.labels.class_names), cfg.input.img_size, cfg.decode.conf_thresh)
    for images, targets in progress_bar(loader, progress.title, len(loader)):
        progress.check()
        moved = targets.to(device, non_blocking=True)
        preds = model(to_input(images, device))
        means.add(task.terms(preds, moved), len(images))
        candidates = model.decode(preds, cfg.decode)
        found = model.finish(candidates, cfg.decode, cfg.eval.map_conf_thresh, MAP_DETECTIONS)
        metric.update(
            targets.image_ids.numpy(),
            targets.sizes.numpy(),
            PaddedDetections(found.boxes.cpu().numpy(), found.scores.cpu().numpy(), found.labels.cpu().numpy()),
            PaddedTruths(targets.boxes.numpy(), targets.labels.numpy()),
        )
    for samples in dist.gather(metric.samples()):
        metric.add(samples)
    evaluation = metric.compute()
    metrics: dict[str, float | None] = {f"val/{name}": value for name, value in means.read_all().items()}
    metrics |= {f"val/{name}": value for name, value in to_metrics(evaluation).items()}
    if cfg.eval.coco_eval and dist.is_main():
        coco = coco_metrics(metric.samples(), cfg.labels.class_names, per_class=cfg.eval.coco_per_class)
        metrics |= {f"val/{name}": value for name, value in coco.items()}
    return Validation(metrics, evaluation, metric.samples())
