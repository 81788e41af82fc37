"""How fast UltraTinyOD trains, where the time goes, and how far that is from the bare network.

    python -m benchmarks.train_speed --train-list people/train.txt --widths 64 32 16

Each width trains epochs through the real engine (loading and augmentation included; the first one,
which warms up, is not counted), between measurements of the bare network: forward, backward and
fused AdamW on random tensors. All figures of a row come from one process, so their ratios hold on a
noisy machine.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch

from uhd.augment import load_pipeline
from uhd.cli import parse_args
from uhd.config import Config
from uhd.data.build import build_datasets
from uhd.data.dataset import DetectionDataset
from uhd.data.loader import BatchLoader, build_loader
from uhd.engine import Progress, train_one_epoch
from uhd.logger import log_to_console
from uhd.models import build_model
from uhd.optim import TrainState
from uhd.resolve import resolve
from uhd.task import build_task

FLAGS = [
    "--use-improved-head", "--utod-head-ese", "--use-iou-aware-head", "--utod-residual", "--use-batchnorm",
    "--num-anchors", "8", "--auto-anchors", "--iou-loss", "ciou", "--use-ema",
]  # fmt: skip


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


class TimedLoader:
    """A loader whose waiting time is measured."""

    def __init__(self, loader: BatchLoader, watch: Stopwatch) -> None:
        self.loader, self.watch = loader, watch

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        self.loader.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        iterator = iter(self.loader)
        with contextlib.suppress(StopIteration):
            while True:
                yield self.watch.wrap("loader", next)(iterator)


def bare_step(cfg: Config, *, channels_last: bool, bf16: bool = False, compiled: bool = False) -> Callable[[], None]:
    """One step of the bare network on random tensors."""
    memory = torch.channels_last if channels_last else torch.contiguous_format
    model = build_model(cfg.model).to(memory_format=memory)
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    images = torch.rand(cfg.optim.batch_size, 3, *cfg.input.img_size).to(memory_format=memory)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            raw = forward(images)[model.raw_names[0]]
        raw.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def images_per_second(step: Callable[[], None], batch_size: int, steps: int) -> float:
    """Median over single steps, after two that warm up."""
    times = []
    for number in range(steps + 2):
        start = time.perf_counter()
        step()
        if number >= 2:
            times.append(time.perf_counter() - start)
    return batch_size / statistics.median(times)


def measure(cfg: Config, train_set: DetectionDataset, epochs: int, steps: int) -> dict[str, float]:
    """Images a second end to end and bare, and each part's share of the epochs."""
    torch.manual_seed(0)
    device = torch.device("cpu")
    task = build_task(cfg, build_model(cfg.model)).to(memory_format=torch.channels_last)
    state = TrainState(cfg.optim, task, device)
    loader = build_loader(train_set, cfg.optim.batch_size, cfg.data.num_workers, shuffle=True, device_is_cuda=False)
    watch = Stopwatch()
    bare = {
        "nchw": bare_step(cfg, channels_last=False, bf16=cfg.optim.use_amp),
        "bare": bare_step(cfg, channels_last=True, bf16=cfg.optim.use_amp),
    }
    progress = Progress("epoch", 10, lambda: None)
    figures: dict[str, list[float]] = defaultdict(list)
    task.student.forward = watch.wrap("forward", task.student.forward)  # type: ignore[method-assign]
    task.criterion.forward = watch.wrap("loss", task.criterion.forward)  # type: ignore[method-assign]
    state.step = watch.wrap("optimizer", state.step)  # type: ignore[method-assign]
    original = torch.Tensor.backward
    try:
        for epoch in range(epochs + 1):
            for name, step in bare.items():
                figures[name].append(images_per_second(step, cfg.optim.batch_size, steps))
            watch.seconds.clear()
            torch.Tensor.backward = watch.wrap("backward", original)  # type: ignore[method-assign]
            stats = train_one_epoch(task, TimedLoader(loader, watch), state, progress)  # type: ignore[arg-type]
            torch.Tensor.backward = original  # type: ignore[method-assign]
            if epoch:
                figures["end to end"].append(float(stats["images_per_second"] or 0))
                for name, seconds in watch.seconds.items():
                    figures[name].append(seconds / float(stats["seconds"] or 1))
    finally:
        torch.Tensor.backward = original  # type: ignore[method-assign]
    return {name: statistics.median(values) for name, values in figures.items()}


def compare_variants(cfg: Config, steps: int, repeats: int = 3) -> None:
    """Prints the bare network's images a second in each way of running it, measured in turn."""
    variants = {
        "float32 NCHW": bare_step(cfg, channels_last=False),
        "float32 channels_last": bare_step(cfg, channels_last=True),
        "float32 channels_last, torch.compile": bare_step(cfg, channels_last=True, compiled=True),
        "bfloat16 channels_last": bare_step(cfg, channels_last=True, bf16=True),
    }
    rates: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        for name, step in variants.items():
            rates[name].append(images_per_second(step, cfg.optim.batch_size, steps))
    base = statistics.median(rates["float32 NCHW"])
    for name, values in rates.items():
        rate = statistics.median(values)
        print(f"w{cfg.model.cnn_width:<4} {name:<38}{rate:>8.1f} images/s{rate / base:>8.2f}x")  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train-list", required=True, help="text file of pictures with YOLO labels")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 32, 16])
    parser.add_argument("--assigners", nargs="+", default=["tal"])
    parser.add_argument("--epochs", type=int, default=2, help="counted epochs")
    parser.add_argument("--steps", type=int, default=10, help="steps of each bare measurement")
    parser.add_argument("--pictures", type=int, default=1536, help="pictures an epoch")
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--use-amp", action="store_true", help="bfloat16")
    parser.add_argument("--variants", action="store_true", help="only compare ways of running the bare network")
    args = parser.parse_args()
    log_to_console()
    with tempfile.TemporaryDirectory() as cache:
        flags = [*FLAGS, "--train-list", args.train_list, "--val-list", args.train_list, "--cache-dir", cache]
        base, _ = parse_args([*flags, "--use-amp"] if args.use_amp else flags)
        assert base.labels.classes is not None
        data = dataclasses.replace(base.data, val_list=None, train_list=None, image_dir=args.train_list)
        data = dataclasses.replace(data, train_split=1.0, val_split=0.0, num_workers=args.workers)
        transform = load_pipeline(data.aug_config, base.labels.classes)
        train_set, _ = build_datasets(base.input, base.labels, data, transform)
        columns = ("end to end", "nchw", "bare")
        shares = ("loader", "forward", "loss", "backward", "optimizer")
        print(f"{'width':>6} {'assigner':>9} " + "".join(f"{c:>12}" for c in columns) + f"{'beyond bare':>13}", end="")
        print("".join(f"{share:>11}" for share in shares) + f"{'other':>9}")
        for width in args.widths:
            for assigner in args.assigners:
                cfg = dataclasses.replace(
                    base,
                    data=data,
                    model=dataclasses.replace(base.model, cnn_width=width),  # type: ignore[call-arg]
                    assign=dataclasses.replace(base.assign, anchor_assigner=assigner),
                )
                cfg = resolve(cfg, train_set)
                if args.variants:
                    compare_variants(cfg, args.steps)
                    continue
                subset = first_pictures(train_set, args.pictures)
                row = measure(cfg, subset, args.epochs, args.steps)
                beyond = row["bare"] / row["end to end"] * (1 - row["loader"]) - 1
                line = f"{width:>6} {assigner:>9} " + "".join(f"{row[c]:>12.0f}" for c in columns) + f"{beyond:>12.0%} "
                line += "".join(f"{row[share]:>11.1%}" for share in shares)
                print(line + f"{1 - sum(row[share] for share in shares):>9.1%}", flush=True)


def first_pictures(dataset: DetectionDataset, count: int) -> DetectionDataset:
    """The same set with at most `count` pictures."""
    subset = object.__new__(DetectionDataset)
    subset.__dict__.update(dataset.__dict__)
    for name in ("paths", "boxes", "labels", "sizes"):
        setattr(subset, name, getattr(dataset, name)[:count])
    return subset


if __name__ == "__main__":
    main()
