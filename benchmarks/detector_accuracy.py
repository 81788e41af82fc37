"""What to pick for which budget: detectors trained alike, what they find, cost and take; a Markdown table and a chart.

    python -m benchmarks.detector_accuracy --out runs/detectors --epochs 60 --over ms --chart docs/budget.png -- \
        --train-list people/train.txt --val-list people/val.txt

What stands behind -- goes to every training. A training that is finished is not done again, one that was stopped goes
on, so that a long table can be made in several sittings; --rows chooses some.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.accuracy_table import add_options, report
from benchmarks.common import FLAGS
from benchmarks.trainings import best_epoch, split_flags

W32 = [*FLAGS, "--cnn-width", "32"]
HALF_NANODET = ["--arch", "nanodet", "--nanodet-width", "0.5", "--nanodet-neck-channels", "64", "--use-ema"]
TINYSSD = ["--arch", "tinyssd", "--use-batchnorm", "--use-ema", "--loss-weight-box", "0.2"]
ROWS: dict[str, list[str]] = {
    **{f"ultratinyod w{width}, 64": [*FLAGS, "--cnn-width", str(width)] for width in (16, 32, 64)},
    "cnn ultratinyresnet, 64": [
        *("--arch", "cnn", "--use-batchnorm", "--use-ema", "--backbone", "ultratinyresnet", "--use-anchor"),
        *("--use-improved-head", "--num-anchors", "5", "--iou-loss", "ciou"),
    ],
    "nanodet half, 64": HALF_NANODET,
    "nanodet s, 64": ["--arch", "nanodet", "--use-ema"],
    "tinyssd fire, one level, 64": [*TINYSSD, "--tinyssd-levels", "1", "--num-anchors", "12"],
    "tinyssd fire, six levels, 64": [*TINYSSD, "--num-anchors", "4"],
    **{f"ultratinyod w32, {side}": [*W32, "--img-size", f"{side}x{side}"] for side in (128, 192)},
    **{f"nanodet half, {side}": [*HALF_NANODET, "--img-size", f"{side}x{side}"] for side in (128, 192)},
}


def main() -> None:
    own, train_flags = split_flags(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    add_options(parser)
    args = parser.parse_args(own)
    runs = {}
    for title in args.rows:
        runs[title] = args.out / f"{title.replace(',', '').replace(' ', '_')}_{args.epochs}"
        best_epoch(runs[title], [*ROWS[title], "--seed", "42", *train_flags], args.epochs)
    report(runs, args)


if __name__ == "__main__":
    main()
