"""How fast a network trains, where the time goes, and how far that is from the bare network.

    python -m benchmarks.train_speed --train-list people/train.txt --widths 64 32 16
    python -m benchmarks.train_speed --train-list people/train.txt --network "--arch nanodet"

Each width trains epochs through the real engine, between measurements of the bare network: forward,
backward and fused AdamW on random tensors. "end to end" loads and augments with workers, which take
their share of the cores; "prepared" trains on the same batches held in memory, so that "beyond bare" is
what the engine adds to the bare network. Epochs that warm up are not counted. All figures of a row
come from one process, so their ratios hold on a noisy machine.
"""

from __future__ import annotations

import uhd.process  # noqa: F401  # isort: skip - settings that torch reads when it is loaded

import argparse
import contextlib
import dataclasses
import shlex
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.common import FLAGS, Stopwatch, bare_step, first_pictures, images_per_second
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


class PreparedLoader:
    """Batches in memory, in place of a loader."""

    def __init__(self, loader: BatchLoader) -> None:
        self.batches = list(loader)

    def __len__(self) -> int:
        return len(self.batches)

    def set_epoch(self, epoch: int) -> None:
        """The same batches in each epoch."""

    def pictures_in(self, batch: int) -> int:
        return len(self.batches[batch].images)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class TimedLoader:
    """A loader whose waiting time is measured."""

    def __init__(self, loader: BatchLoader, watch: Stopwatch) -> None:
        self.loader, self.watch = loader, watch

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        self.loader.set_epoch(epoch)

    def pictures_in(self, batch: int) -> int:
        return self.loader.pictures_in(batch)

    def __iter__(self) -> Iterator[Any]:
        iterator = iter(self.loader)
        with contextlib.suppress(StopIteration):
            while True:
                yield self.watch.wrap("loader", next)(iterator)


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
    task.student.forward = watch.wrap("forward", task.student.forward)
    task.criterion.forward = watch.wrap("loss", task.criterion.forward)
    state.step = watch.wrap("optimizer", state.step)
    loaders = {"prepared": PreparedLoader(loader), "end to end": TimedLoader(loader, watch)}
    with wrapped_backward(watch):
        for epoch in range(epochs + 1):
            for name, step in bare.items():
                figures[name].append(images_per_second(step, cfg.optim.batch_size, steps))
            for name, source in loaders.items():
                watch.seconds.clear()
                stats = train_one_epoch(task, source, state, progress)
                if not epoch:
                    continue
                figures[name].append(float(stats["images_per_second"] or 0))
                for part, seconds in watch.seconds.items():
                    if (part == "loader") == (name == "end to end"):
                        figures[part].append(seconds / float(stats["seconds"] or 1))
    return {name: statistics.median(values) for name, values in figures.items()}


@contextlib.contextmanager
def wrapped_backward(watch: Stopwatch) -> Iterator[None]:
    """Times the backward passes of the bare network too; the counts are cleared after those."""
    original = torch.Tensor.backward
    torch.Tensor.backward = watch.wrap("backward", original)
    try:
        yield
    finally:
        torch.Tensor.backward = original


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
        print(f"w{cfg.model.cnn_width:<4} {name:<38}{rate:>8.1f} images/s{rate / base:>8.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train-list", required=True, help="text file of pictures with YOLO labels")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 32, 16])
    parser.add_argument("--network", type=shlex.split, default=None, help="train.py's flags, in place of the widths")
    parser.add_argument("--assigners", nargs="+", default=["tal"])
    parser.add_argument("--epochs", type=int, default=3, help="counted epochs")
    parser.add_argument("--steps", type=int, default=24, help="steps of each bare measurement")
    parser.add_argument("--pictures", type=int, default=1536, help="pictures an epoch")
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--use-amp", action="store_true", help="bfloat16")
    parser.add_argument("--variants", action="store_true", help="only compare ways of running the bare network")
    args = parser.parse_args()
    log_to_console()
    with tempfile.TemporaryDirectory() as cache:
        flags = [
            *(args.network or FLAGS),
            "--train-list",
            args.train_list,
            "--val-list",
            args.train_list,
            "--cache-dir",
            cache,
        ]
        base, _ = parse_args([*flags, "--use-amp"] if args.use_amp else flags)
        assert base.labels.classes is not None
        data = dataclasses.replace(base.data, val_list=None, train_list=None, image_dir=args.train_list)
        data = dataclasses.replace(data, train_split=1.0, val_split=0.0, num_workers=args.workers)
        transform = load_pipeline(data.aug_config, base.labels.classes)
        train_set, _ = build_datasets(base.input, base.labels, data, transform)
        columns = ("end to end", "prepared", "bare", "nchw")
        shares = ("forward", "loss", "backward", "optimizer")
        print(f"{'width':>6} {'assigner':>9} " + "".join(f"{c:>12}" for c in columns) + f"{'beyond bare':>13}", end="")
        print(f"{'loader':>9}" + "".join(f"{share:>11}" for share in shares) + f"{'other':>9}")
        widths = [None] if args.network else args.widths
        for width in widths:
            for assigner in [base.assign.anchor_assigner] if args.network else args.assigners:
                cfg = dataclasses.replace(
                    base,
                    data=data,
                    model=dataclasses.replace(base.model, cnn_width=width) if width else base.model,
                    assign=dataclasses.replace(base.assign, anchor_assigner=assigner),
                )
                cfg = resolve(cfg, train_set)
                if args.variants:
                    compare_variants(cfg, args.steps)
                    continue
                subset = first_pictures(train_set, args.pictures)
                row = measure(cfg, subset, args.epochs, args.steps)
                beyond = row["bare"] / row["prepared"] - 1
                line = (
                    f"{width or '-':>6} {assigner if width else '-':>9} "
                    + "".join(f"{row[c]:>12.0f}" for c in columns)
                    + f"{beyond:>12.0%} "
                )
                line += f"{row['loader']:>8.1%} " + "".join(f"{row[share]:>11.1%}" for share in shares)
                print(line + f"{1 - sum(row[share] for share in shares):>9.1%}", flush=True)


if __name__ == "__main__":
    main()
