"""What several benchmarks share: the variant that all figures are of, its bare network, and a stopwatch."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from uhd.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from uhd.cli import parse_args
from uhd.config import Config
from uhd.data.dataset import DetectionDataset
from uhd.models import build_model
from uhd.optim import TrainState
from uhd.runtime import Detector
from uhd.task import build_task

FLAGS = [
    "--arch", "ultratinyod",
    "--use-improved-head", "--utod-head-ese", "--use-iou-aware-head", "--utod-residual", "--use-batchnorm",
    "--num-anchors", "8", "--auto-anchors", "--iou-loss", "ciou", "--use-ema",
]  # fmt: skip


ANCHORS = "0.05,0.16 0.13,0.27 0.10,0.47 0.19,0.57 0.40,0.31 0.29,0.74 0.45,0.81 0.72,0.90"
"""As k-means finds them on photographs of people."""


class Stopwatch:
    """Seconds by name, for functions that it has wrapped."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - start

        return timed


def bare_step(cfg: Config, *, channels_last: bool, bf16: bool = False, compiled: bool = False) -> Callable[[], None]:
    """One step of the bare network, and of what helps it learn where there is such a thing, on random tensors."""
    memory = torch.channels_last if channels_last else torch.contiguous_format
    model = build_model(cfg.model).to(memory_format=memory)
    auxiliary = model.auxiliary()
    modules = torch.nn.ModuleList([model] if auxiliary is None else [model, auxiliary.to(memory_format=memory)])
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(modules.parameters(), lr=1e-3, fused=True)
    images = torch.rand(cfg.optim.batch_size, 3, *cfg.input.img_size).to(memory_format=memory)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            preds = forward(images)
            maps = [preds[name] for name in model.raw_names if len(preds[name]) == len(images)]
            maps += [] if auxiliary is None else auxiliary(preds).values()
        sum(each.float().square().mean() for each in maps).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def images_per_second(step: Callable[[], None], batch_size: int, steps: int) -> float:
    """Mean over the steps, as an epoch's rate is, after two that warm up."""
    for number in range(steps + 2):
        if number == 2:
            start = time.perf_counter()
        step()
    return batch_size * steps / (time.perf_counter() - start)


def untrained(flags: Sequence[str], folder: Path) -> Checkpoint:
    """A checkpoint of the network that the flags of train.py ask for, with random weights."""
    cfg, _ = parse_args(flags)
    torch.manual_seed(0)
    task = build_task(cfg, build_model(cfg.model))
    folder.mkdir()
    state = TrainState(cfg.optim, task, torch.device("cpu"))
    return read_checkpoint(save_checkpoint(folder, cfg, state, {}, is_best=False))


def bare(detector: Detector, inputs: NDArray[np.float32] | None = None) -> Callable[[], object]:
    """A run of the session alone, on one picture after the other."""
    if inputs is None:
        inputs = np.zeros((1, 3, *detector.img_size), dtype=np.float32)
    feeds = [{detector.session.get_inputs()[0].name: image[None]} for image in inputs]
    turn = iter(range(10**9))
    return lambda: detector.session.run(None, feeds[next(turn) % len(feeds)])


def first_pictures(dataset: DetectionDataset, count: int) -> DetectionDataset:
    """The same set with at most `count` pictures."""
    subset = object.__new__(DetectionDataset)
    subset.__dict__.update(dataset.__dict__)
    for name in ("paths", "boxes", "labels", "sizes"):
        setattr(subset, name, getattr(dataset, name)[:count])
    return subset
