"""How fast each architecture trains through train.py itself, and how much memory it takes.

    python -m benchmarks.arch_speed --train-list people/train.txt --val-list people/val.txt

Each row is a run of the real program: reading from the cache, augmentation, batches of 64 at 64x64. Its images a second
are the median of the epochs from the second on, without validation. "memory" is the largest resident size of its main
process. The rows take turns, so that their ratios hold on a noisy machine.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import FLAGS

TRAIN = Path(__file__).parents[1] / "train.py"
RUNS: dict[str, tuple[list[str], int]] = {
    "cnn w32": (["--arch", "cnn", "--use-batchnorm", "--use-ema"], 0),
    "transformer": (["--arch", "transformer", "--lr", "0.001", "--weight-decay", "0.0001"], 640),
    "transformer, fpn": (["--arch", "transformer", "--use-fpn", "--lr", "0.001", "--weight-decay", "0.0001"], 192),
    "ultratinyod w32": ([*FLAGS, "--cnn-width", "32"], 0),
}
"""Flags of train.py, and on how many of the pictures (0: all), so that slow networks end too."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train-list", required=True, type=Path, help="text file of pictures with YOLO labels")
    parser.add_argument("--val-list", required=True, type=Path, help="the same of the validation pictures")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of a run; the first is not counted")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each row")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS), help="rows")
    args = parser.parse_args()
    rates: dict[str, list[float]] = {name: [] for name in args.only}
    memory: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(args.rounds):
            for row in args.only:
                found, peak = run(row, args, folder / f"{number} {row}", folder)
                rates[row] += found
                memory[row] = max(memory.get(row, 0), peak)
    print("| network | images/s | spread | memory, GiB |")
    print("| --- | --- | --- | --- |")
    for row, values in rates.items():
        spread = (
            f"{min(values):,.0f} to {max(values):,.0f}"
            if min(values) >= 100
            else f"{min(values):.1f} to {max(values):.1f}"
        )
        print(f"| {row} | {statistics.median(values):,.1f} | {spread} | {memory[row]:.2f} |")


def run(row: str, args: argparse.Namespace, run_dir: Path, folder: Path) -> tuple[list[float], float]:
    """Images a second of the epochs after the first, and the largest resident size in GiB."""
    flags, count = RUNS[row]
    train_list = args.train_list
    if count:
        train_list = folder / f"first_{count}.txt"
        paths = args.train_list.read_text(encoding="utf-8").split("\n")[:count]
        train_list.write_text("\n".join(str(args.train_list.parent.resolve() / path) for path in paths))
    command = [
        *(sys.executable, str(TRAIN), *flags),
        *("--train-list", str(train_list), "--val-list", str(args.val_list), "--val-count", "16"),
        *("--cache-dir", str(folder / "cache"), "--ckpt-out", str(run_dir)),
        *("--epochs", str(args.epochs), "--eval-interval", str(args.epochs)),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"{row}: train.py ended with {process.returncode}")
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["images_per_second"] for line in lines[1:]], peak / 2**20


def resident(pid: int) -> int:
    """The largest resident size that a running process has had, in KiB; 0 where it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) if found else 0


if __name__ == "__main__":
    main()
