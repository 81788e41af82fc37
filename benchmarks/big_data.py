"""Start-up, and memory in an epoch, with very many pictures in the disk cache.

    python -m benchmarks.big_data --count 200000 --workers 2

Pictures and labels are real files, copies of 64 different JPEGs of 96x96 pixels with none to three boxes: hard links
would count as one picture. Every figure is of a fresh process. Memory is what a process has resident (RSS), less what
it had after its imports; workers are looked at during the epoch, and the largest counts. The files and the cache are
deleted at the end.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from uhd.config import DataConfig, InputConfig, LabelsConfig, parse_size
from uhd.data import build_datasets, build_loader
from uhd.data.dataset import DetectionDataset

TEMPLATES = 64
PER_FOLDER = 2000
ROW = "| {:<18} | {:>8} | {:>11} | {:>10} | {:>8} | {:>8} | {:>10} |"


class Figures(NamedTuple):
    """Wall-clock and processor seconds; memory of the process, its peak, and the largest of its workers', in MiB."""

    seconds: float
    cpu: float
    memory: float
    peak: float
    worker: float = 0.0


Job = Callable[[argparse.Namespace, Path], Figures]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Start-up and memory with many pictures.")
    parser.add_argument("--count", type=int, default=200_000, help="pictures")
    parser.add_argument("--img-size", type=parse_size, default=(64, 64))
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", default=None, help="where the files are made; default: the temporary folder")
    return parser.parse_args()


def write_pictures(folder: Path, count: int) -> None:
    """Copies of a few JPEGs, each with a label file, at most PER_FOLDER in a folder."""
    rng = np.random.default_rng(0)
    templates = []
    for _ in range(TEMPLATES):
        pixels = cv2.resize(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), (96, 96))
        templates.append(cv2.imencode(".jpg", pixels)[1].tobytes())
    for i in range(count):
        place = folder / f"{i // PER_FOLDER:04}"
        if i % PER_FOLDER == 0:
            place.mkdir(parents=True)
        (place / f"{i:08}.jpg").write_bytes(templates[i % TEMPLATES])
        (place / f"{i:08}.txt").write_text("0 0.5 0.5 0.2 0.4\n" * (i % 4))


def memory_mib(process: int | str, field: str = "VmRSS") -> float:
    """Resident memory of a process; VmHWM is its peak."""
    with open(f"/proc/{process}/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def open_set(args: argparse.Namespace, folder: Path) -> DetectionDataset:
    data = DataConfig(
        image_dir=str(folder / "data"), train_split=1, val_split=0, cache="disk", cache_dir=str(folder / "cache")
    )
    return build_datasets(InputConfig(img_size=args.img_size), LabelsConfig().resolved(), data)[0]


def start(args: argparse.Namespace, folder: Path) -> Figures:
    """Opening the set."""
    before, begin, cpu = memory_mib("self"), time.perf_counter(), time.process_time()
    dataset = open_set(args, folder)
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    assert len(dataset) == args.count
    return Figures(seconds, cpu, memory_mib("self") - before, memory_mib("self", "VmHWM") - before)


def epoch(args: argparse.Namespace, folder: Path) -> Figures:
    """A shuffled epoch of an open set; the processor time is this process's, without its workers'."""
    before = memory_mib("self")
    loader = build_loader(open_set(args, folder), args.batch_size, args.workers, shuffle=True, device_is_cuda=False)
    begin, cpu, largest = time.perf_counter(), time.process_time(), 0.0
    for number, _ in enumerate(loader):
        if number % 100 == 0:
            children = multiprocessing.active_children()
            largest = max([largest, *(memory_mib(child.pid or "self") - before for child in children)])
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    return Figures(seconds, cpu, memory_mib("self") - before, memory_mib("self", "VmHWM") - before, largest)


def measure(job: Job, args: argparse.Namespace, folder: Path) -> Figures:
    """The job's figures, in a fresh process."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_send, args=(job, args, folder, there))
    process.start()
    there.close()
    figures: Figures = here.recv()
    process.join()
    return figures


def _send(job: Job, args: argparse.Namespace, folder: Path, pipe: Connection) -> None:
    pipe.send(job(args, folder))


def main() -> None:
    args = parse_args()
    folder = Path(tempfile.mkdtemp(prefix="uhd_big_data_", dir=args.folder))
    try:
        begin = time.perf_counter()
        write_pictures(folder / "data", args.count)
        print(f"{args.count:,} pictures and labels written in {time.perf_counter() - begin:.0f} s\n")
        print(ROW.format("what", "seconds", "CPU seconds", "pictures/s", "RSS MiB", "peak MiB", "worker MiB"))
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for title, job in (("cold start", start), ("warm start", start), (f"epoch, {args.workers} workers", epoch)):
            found = measure(job, args, folder)
            memory = (f"{value:.0f}" for value in (found.memory, found.peak, found.worker))
            times = f"{found.seconds:.1f}", f"{found.cpu:.1f}", f"{args.count / found.seconds:.0f}"
            print(ROW.format(title, *times, *memory), flush=True)
        size = sum(file.stat().st_size for file in (folder / "cache").rglob("*") if file.is_file())
        print(f"\nThe cache has {size / 2**20:.0f} MiB.")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
