"""What distillation costs: seconds of an epoch alone, from a teacher, and from the teacher's outputs on disk.

    python -m benchmarks.distill_speed --train-list people/train.txt --student 16 --teacher 128

The teacher has random weights. "bare teacher" is its forward pass alone over the same pictures. All rows take turns in
one process, so that their ratios hold on a noisy machine; the first round warms up.
"""

from __future__ import annotations

import uhd.process  # noqa: F401  # isort: skip - settings that torch reads when it is loaded

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch

from benchmarks.common import FLAGS, first_pictures, untrained
from uhd.augment import load_pipeline
from uhd.cli import parse_args
from uhd.config import Config
from uhd.data.build import build_datasets
from uhd.data.dataset import DetectionDataset
from uhd.data.loader import build_loader
from uhd.distill_task import DistillTask, build_distill_task, load_teachers
from uhd.engine import Progress, to_input, train_one_epoch
from uhd.logger import log_to_console
from uhd.models import build_model
from uhd.optim import TrainState
from uhd.resolve import resolve

TERMS = ["--distill-kl", "1", "--distill-obj", "1", "--distill-quality", "1", "--distill-box-l1", "1"]
QUIET = Progress("epoch", 10, lambda: None)


class Row:
    """A task that trains epoch after epoch."""

    def __init__(self, cfg: Config, train_set: DetectionDataset) -> None:
        torch.manual_seed(0)
        teachers = load_teachers(cfg)
        task = build_distill_task(cfg, build_model(cfg.model), teachers, len(train_set))
        self.task = task.to(memory_format=torch.channels_last)
        if isinstance(task, DistillTask) and cfg.distill.teacher_cache:
            task.remember(train_set, cfg, QUIET)
        self.state = TrainState(cfg.optim, self.task, torch.device("cpu"))
        self.loader = build_loader(train_set, cfg.optim.batch_size, None, shuffle=True, device_is_cuda=False)

    def seconds(self) -> float:
        """Trains an epoch."""
        return float(train_one_epoch(self.task, self.loader, self.state, QUIET)["seconds"] or 0)


class BareTeacher:
    """The teacher's forward pass over an epoch's pictures, held in memory."""

    def __init__(self, cfg: Config, train_set: DetectionDataset) -> None:
        teachers = load_teachers(cfg)
        assert teachers is not None
        assert teachers.network is not None
        self.network = teachers.network.to(memory_format=torch.channels_last)
        loader = build_loader(train_set, cfg.optim.batch_size, 0, shuffle=False, device_is_cuda=False)
        self.batches = [to_input(images, torch.device("cpu")) for images, _ in loader]

    def seconds(self) -> float:
        """One pass."""
        start = time.perf_counter()
        for batch in self.batches:
            self.network(batch)
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train-list", required=True, help="text file of pictures with YOLO labels")
    parser.add_argument("--student", type=int, default=16, help="width")
    parser.add_argument("--teacher", type=int, default=128, help="width")
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds")
    parser.add_argument("--pictures", type=int, default=1536, help="pictures an epoch")
    args = parser.parse_args()
    log_to_console()
    with tempfile.TemporaryDirectory() as folder:
        flags = [*FLAGS, "--image-dir", args.train_list, "--train-split", "1", "--val-split", "0"]
        flags += ["--cache-dir", folder, "--cnn-width", str(args.student)]
        base, _ = parse_args(flags)
        assert base.labels.classes is not None
        transform = load_pipeline(base.data.aug_config, base.labels.classes)
        train_set, _ = build_datasets(base.input, base.labels, base.data, transform)
        train_set = first_pictures(train_set, args.pictures)
        base = resolve(base, train_set)
        anchors = " ".join(f"{w},{h}" for w, h in base.model.anchors)
        wide = [*FLAGS, "--cnn-width", str(args.teacher), "--anchors", anchors]
        teacher = str(untrained(wide, Path(folder) / "teacher").path)
        plain_set = first_pictures(train_set, args.pictures)
        plain_set.transform = None

        def taught(*more: str) -> Config:
            cfg, _ = parse_args([*flags, "--teacher-ckpt", teacher, *TERMS, *more])
            return dataclasses.replace(cfg, model=base.model)

        rows = {
            "alone": Row(base, train_set),
            "bare teacher": BareTeacher(taught(), plain_set),
            "from the teacher": Row(taught(), train_set),
            "from the teacher, features too": Row(taught("--distill-feat", "1"), train_set),
            "alone, not augmented": Row(base, plain_set),
            "from --teacher-cache": Row(taught("--no-aug", "--teacher-cache", folder), plain_set),
        }
        seconds: dict[str, list[float]] = defaultdict(list)
        for turn in range(args.rounds + 1):
            for name, row in rows.items():
                spent = row.seconds()
                if turn:
                    seconds[name].append(spent)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        print(f"{'w' + str(args.student) + ' from w' + str(args.teacher):<34}{'s an epoch':>12}{'of alone':>10}")
        for name, value in medians.items():
            print(f"{name:<34}{value:>12.2f}{value / medians['alone']:>10.2f}")


if __name__ == "__main__":
    main()
