"""What a validation costs beyond the forward pass.

    python -m benchmarks.validate --image-dir people/val.txt --pictures 400

Decoding, suppression, mAP by size, loss terms and the pictures of the report, at confidence 0.001,
with the weights of a checkpoint or, without one, with random weights (which pass the most boxes on).
"""

from __future__ import annotations

import uhd.process  # noqa: F401  # isort: skip - settings that torch reads when it is loaded

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.common import FLAGS, Stopwatch, first_pictures
from uhd.checkpoint import load_model
from uhd.cli import parse_args
from uhd.data.build import build_datasets
from uhd.data.loader import build_loader
from uhd.engine import Progress, evaluate
from uhd.logger import log_to_console
from uhd.models import build_model
from uhd.reports import write_reports
from uhd.resolve import resolve
from uhd.task import build_task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image-dir", required=True, help="folder of pictures, or a text file that lists them")
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--ckpt", help="validate these weights instead of random ones")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    log_to_console()
    with tempfile.TemporaryDirectory() as folder:
        cfg, _ = parse_args([*FLAGS, "--cnn-width", str(args.width), "--image-dir", args.image_dir])
        data = dataclasses.replace(cfg.data, train_split=0.0, val_split=1.0, cache_dir=folder)
        cfg = dataclasses.replace(cfg, data=data)
        _, val_set = build_datasets(cfg.input, cfg.labels, cfg.data, need_train=False)
        val_set = first_pictures(val_set, args.pictures)
        cfg = resolve(cfg, val_set)
        model = build_model(cfg.model)
        if args.ckpt:
            model, cfg = load_model(args.ckpt)
        model.to(memory_format=torch.channels_last)
        loader = build_loader(val_set, cfg.optim.batch_size, None, shuffle=False, device_is_cuda=False)
        task = build_task(cfg, model)
        watch = Stopwatch()
        model.forward = watch.wrap("forward", model.forward)
        print(f"{len(val_set)} pictures, {val_set.num_boxes} boxes, w{cfg.model.cnn_width}")
        print(f"{'total':>9}{'forward':>9}{'beyond':>9}{'report':>9}  (seconds)")
        for _ in range(args.repeats):
            watch.seconds.clear()
            start = time.perf_counter()
            validation = evaluate(model, task, loader, cfg, Progress("", 1, lambda: None))
            total = time.perf_counter() - start
            start = time.perf_counter()
            write_reports(Path(folder), validation, val_set, cfg, [])
            report, forward = time.perf_counter() - start, watch.seconds["forward"]
            print(f"{total:>9.2f}{forward:>9.2f}{total - forward:>9.2f}{report:>9.2f}", flush=True)


if __name__ == "__main__":
    main()
