"""One epoch of training, and validation. Neither names an architecture or a loss term."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from uhd.boxes import suppress
from uhd.config import Config
from uhd.data.loader import BatchLoader
from uhd.eval.coco import coco_metrics
from uhd.eval.mean_ap import Evaluation, MeanAP, to_metrics
from uhd.eval.samples import PaddedDetections, PaddedTruths, Samples
from uhd.models import Detector
from uhd.optim import MAX_BAD_STEPS, TrainState
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

    def add(self, terms: Terms, pictures: int, finite: Tensor | None = None) -> None:
        """Takes a batch's terms, which may lie on a device and are not waited for; a step not `finite` is left out."""
        weight = pictures if finite is None else finite.double() * pictures
        self.weight = self.weight + weight
        for name, value in (("loss", sum_terms(terms)), *terms.items()):
            value = value.detach().double()
            value = value * pictures if finite is None else torch.where(finite, value, 0.0) * pictures
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def read(self) -> dict[str, float]:
        """The means so far, `loss` first; 0 before the first finite step."""
        weight = max(float(self.weight), 1.0)
        return {name: float(value) / weight for name, value in self.sums.items()}


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

    def see(self, terms: Terms, finite: Tensor) -> None:
        """Notes one step."""
        streak = torch.where(finite, 0.0, self.state.bad_streak + 1)
        self.state.bad_streak = streak
        self.longest = torch.maximum(self.longest, streak)
        self.total = self.total + ~finite
        self.unchecked.append({name: value.detach() for name, value in terms.items()})

    def check(self) -> None:
        """Repairs the batch-norm statistics after a bad step; FloatingPointError after too many in a row."""
        total = int(self.total)
        if float(self.longest) > MAX_BAD_STEPS:
            bad = [terms for terms in self.unchecked if not sum_terms(terms).isfinite()][-1]
            shown = ", ".join(f"{name} {float(value):.4g}" for name, value in bad.items())
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
    steps, pictures, lr, start = len(loader), 0, 0.0, time.perf_counter()
    bar = tqdm(loader, desc=progress.title, total=steps, leave=False, dynamic_ncols=True, disable=None)
    for step, (images, targets) in enumerate(bar):
        progress.check()
        lr = state.set_lr(state.epoch + (step + 1) / steps)
        inputs, targets = to_input(images, device), targets.to(device, non_blocking=True)
        terms = task.learn(inputs, targets, state.backward)
        finite = sum_terms(terms).isfinite()
        state.step()
        guard.see(terms, finite)
        means.add(terms, len(images), finite)
        pictures += len(images)
        if step % min(progress.interval, MAX_BAD_STEPS) == 0 or step + 1 == steps:
            guard.check()
        if step % progress.interval == 0:
            bar.set_postfix({name: f"{value:.3f}" for name, value in means.read().items()}, refresh=False)
    state.epoch += 1
    seconds = time.perf_counter() - start
    stats: dict[str, float | None] = {f"train/{name}": value for name, value in means.read().items()}
    stats |= {"lr": lr, "seconds": seconds, "images_per_second": pictures / seconds}
    if skipped := guard.seen:
        stats["train/skipped_steps"] = skipped
    return stats


@dataclass(frozen=True)
class Validation:
    """What a validation found: metrics by their logged names, the figures behind them, and all detections."""

    metrics: dict[str, float | None]
    evaluation: Evaluation
    samples: Samples


@torch.no_grad()
def evaluate(model: Detector, task: DetectionTask, loader: BatchLoader, cfg: Config, progress: Progress) -> Validation:
    """Terms, mAP and all that is reported, in float32, for the model's weights on a validation loader."""
    model.eval()
    task.eval()
    device = next(model.parameters()).device
    means = TermMeans()
    metric = MeanAP(len(cfg.labels.class_names), cfg.input.img_size, cfg.decode.conf_thresh)
    nms_iou = cfg.decode.nms_iou if model.uses_nms else None
    bar = tqdm(loader, desc=progress.title, leave=False, dynamic_ncols=True, disable=None)
    for images, targets in bar:
        progress.check()
        moved = targets.to(device, non_blocking=True)
        preds = model(to_input(images, device))
        means.add(task.terms(preds, moved), len(images))
        candidates = model.decode(preds, cfg.decode)
        found = suppress(candidates, cfg.eval.map_conf_thresh, nms_iou, MAP_DETECTIONS)
        metric.update(
            targets.image_ids.numpy(),
            targets.sizes.numpy(),
            PaddedDetections(found.boxes.cpu().numpy(), found.scores.cpu().numpy(), found.labels.cpu().numpy()),
            PaddedTruths(targets.boxes.numpy(), targets.labels.numpy()),
        )
    evaluation = metric.compute()
    metrics: dict[str, float | None] = {f"val/{name}": value for name, value in means.read().items()}
    metrics |= {f"val/{name}": value for name, value in to_metrics(evaluation).items()}
    if cfg.eval.coco_eval:
        coco = coco_metrics(metric.samples(), cfg.labels.class_names, per_class=cfg.eval.coco_per_class)
        metrics |= {f"val/{name}": value for name, value in coco.items()}
    return Validation(metrics, evaluation, metric.samples())
