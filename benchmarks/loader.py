"""Speed and memory of data loading, and what each augmentation costs.

    python -m benchmarks.loader --image-dir DIR --workers 0 1 2 --aug-config uhd/aug.yaml uhd/aug_strong.yaml
    python -m benchmarks.loader --image-dir DIR --ops

The first prints pictures per second and memory. Loading is measured over the second pass, when workers run
and pages are mapped. Memory is the proportional share (PSS) of this process and its workers, less
what this process held before the pictures were opened. The second prints a row for each op, applied to
every picture at its working size, with one worker.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import active_children

import cv2
import numpy as np

from uhd.augment import OPS, Pipeline, load_pipeline
from uhd.config import DataConfig, InputConfig, LabelsConfig, parse_size
from uhd.data import build_datasets, build_loader
from uhd.data.cache import available_cores
from uhd.data.dataset import DetectionDataset

ROW = "{:<52}{:>12}{:>14}"

STRENGTHS = {
    "RandomHSV": {"hue_gain": 0.015, "saturation_gain": 0.7, "value_gain": 0.4},
    "RandomScale": {"scale_range": (0.6, 1.65), "keep_aspect_ratio": False},
    "Translation": {"translate": 0.15},
    "Rotate": {"degrees": 10.0},
    "RemoveOutliers": {"min_area": 9 / 4096},
}
"""Parameters of the ops that change nothing by default."""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed and memory of data loading.")
    parser.add_argument("--image-dir", required=True, help="folder of pictures, or a text file that lists them")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--aug-config", nargs="+", default=["uhd/aug.yaml"])
    parser.add_argument("--cache-px", type=int, default=DataConfig().cache_px)
    parser.add_argument("--ops", action="store_true", help="a table of the ops instead")
    parser.add_argument("--img-size", type=parse_size, default=(64, 64))
    parser.add_argument("--passes", type=int, default=3, help="passes that are measured, after the first")
    return parser.parse_args()


def memory_mib() -> float:
    """PSS of this process and its children in MiB: shared pages count once in the sum."""
    total = 0
    for process in (os.getpid(), *(child.pid for child in active_children())):
        with open(f"/proc/{process}/smaps_rollup") as lines:
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def decoding_rate(paths: list[str]) -> float:
    """Pictures per second of OpenCV's whole decoding alone, files in the page cache, with a thread for each core."""

    def decode(path: str) -> None:
        assert cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR) is not None

    with ThreadPoolExecutor(available_cores()) as pool:
        start = time.perf_counter()
        for _ in pool.map(decode, paths, chunksize=32):
            pass
    return len(paths) / (time.perf_counter() - start)


def open_set(args: argparse.Namespace, cfg: DataConfig, transform: Pipeline | None) -> tuple[DetectionDataset, float]:
    """The pictures as a training set, and the seconds it took to open them."""
    start = time.perf_counter()
    labels = LabelsConfig().resolved()
    dataset, _ = build_datasets(InputConfig(img_size=args.img_size), labels, cfg, transform)
    return dataset, time.perf_counter() - start


def measure_passes(dataset: DetectionDataset, args: argparse.Namespace, workers: int) -> tuple[float, float]:
    """Pictures per second over the passes after the first, and memory in MiB at their end."""
    loader = build_loader(dataset, args.batch_size, workers, shuffle=True, device_is_cuda=False)
    num_images, seconds = 0, 0.0
    for epoch in range(args.passes + 1):
        loader.set_epoch(epoch)
        start = time.perf_counter()
        count = sum(len(batch.images) for batch in loader)
        if epoch:
            num_images, seconds = num_images + count, seconds + time.perf_counter() - start
    return num_images / seconds, memory_mib()


def loading_table(args: argparse.Namespace, cfg: DataConfig) -> None:
    """Rows for the cache, and for loading with each number of workers and each file."""
    before = memory_mib()
    print(ROW.format("what", "pictures/s", "memory MiB"))
    open_set(args, replace(cfg, cache="none"), None)  # reads every file once
    dataset, seconds = open_set(args, cfg, None)
    print(ROW.format("whole decoding alone, all cores", f"{decoding_rate(dataset.paths):.0f}", ""))
    print(ROW.format("cache build, all cores", f"{len(dataset) / seconds:.0f}", f"{memory_mib() - before:.0f}"))
    dataset, seconds = open_set(args, cfg, None)
    print(ROW.format(f"warm start, {seconds:.2f} s", f"{len(dataset) / seconds:.0f}", ""))
    sets = [("decoded each time", open_set(args, replace(cfg, cache="none"), None)[0]), ("cached", dataset)]
    for path in args.aug_config:
        augmented = open_set(args, cfg, load_pipeline(path, (0,)))[0]
        sets.append((f"cached at {augmented[0].image.shape[0]}, {os.path.basename(path)}", augmented))
    for workers in args.workers:
        for title, each in sets:
            speed, memory = measure_passes(each, args, workers)
            print(ROW.format(f"{title}, {workers} workers", f"{speed:.0f}", f"{memory - before:.0f}"), flush=True)


def op_table(args: argparse.Namespace, cfg: DataConfig) -> None:
    """A row for each op at its working size; the first is loading alone."""
    args.img_size = (args.cache_px, args.cache_px)
    rows: Sequence[tuple[str, Pipeline | None]] = [
        (f"nothing, pictures of {args.cache_px}x{args.cache_px}", None),
        *((name, Pipeline([op_type(prob=1.0, **STRENGTHS.get(name, {}))])) for name, op_type in OPS.items()),
    ]
    print(ROW.format("op, applied to each picture, 1 worker", "pictures/s", "ms a picture"))
    dataset, _ = open_set(args, cfg, None)
    alone = None
    for title, pipeline in rows:
        dataset.transform = pipeline
        speed, _ = measure_passes(dataset, args, 1)
        alone = alone or speed
        print(ROW.format(title, f"{speed:.0f}", f"{1000 / speed - 1000 / alone:.3f}"), flush=True)


def main() -> None:
    args = parse_args()
    cfg = DataConfig(image_dir=args.image_dir, train_split=1, val_split=0, skip_bad_labels=True, cache_px=args.cache_px)
    with tempfile.TemporaryDirectory() as folder:
        table = op_table if args.ops else loading_table
        table(args, replace(cfg, cache="disk", cache_dir=folder))


if __name__ == "__main__":
    main()
