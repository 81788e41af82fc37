"""What each augmentation is worth: one training a row, the same network and data, and a Markdown table.

    python -m benchmarks.augment_accuracy --out runs/aug --epochs 40 --seeds 42 -- \
        --train-list people/train.txt --val-list people/val.txt

Rows: no augmentation; flip and colours; uhd/aug_uhd.yaml, and that with one op more; uhd/aug_strong.yaml. What stands
behind -- goes to train.py. A training that is finished is not done again, one that was stopped goes on, so that a long
table can be made in several sittings; --rows chooses some.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

from benchmarks.common import FLAGS
from benchmarks.trainings import HEAD, best_epoch, split_flags, summary

ROOT = Path(__file__).resolve().parents[1]

ADDED: dict[str, dict[str, Any]] = {
    "Mosaic": {"prob": 0.3},
    "MixUp": {"prob": 0.3},
    "CopyPaste": {"prob": 0.3},
    "RandomScale": {"prob": 1.0, "scale_range": [0.6, 1.65], "keep_aspect_ratio": False},
    "Translation": {"prob": 1.0, "translate": 0.15},
    "RandomResizedCrop": {"prob": 1.0},
}


def rows() -> dict[str, dict[str, Any] | None]:
    """The `data_augment` of each row by its title; None for no augmentation."""
    original = read("aug_uhd.yaml")
    colours = {name: original[name] for name in ("RandomPhotometricDistort", "RandomHSV", "HorizontalFlip")}
    added = {f"original + {name}": {name: params} | original for name, params in ADDED.items()}
    zoom = {name: ADDED[name] for name in ("RandomScale", "Translation")}
    return {
        "none": None,
        "flip and colour": colours,
        "original": original,
        **added,
        "original + zoom and shift": zoom | original,
        "default": read("aug.yaml"),
        "strong": read("aug_strong.yaml"),
    }


def read(name: str) -> dict[str, Any]:
    """The `data_augment` of one of the package's files."""
    augmentation: dict[str, Any] = yaml.safe_load((ROOT / "uhd" / name).read_text())["data_augment"]
    return augmentation


def train(title: str, augmentation: dict[str, Any] | None, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """The best epoch of a row with a seed."""
    name = f"{title.replace(' ', '_').replace(',', '')}_{args.epochs}_{seed}"
    flags = [*FLAGS, "--cnn-width", "32", "--seed", str(seed), *args.train]
    if augmentation is None:
        flags.append("--no-aug")
    else:
        config = args.out / f"{name}.yaml"
        config.write_text(yaml.safe_dump({"data_augment": augmentation}, sort_keys=False))
        flags += ["--aug-config", str(config)]
    return best_epoch(args.out / name, flags, args.epochs, augmentation)


def main() -> None:
    available = rows()
    own, train_flags = split_flags(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42])
    parser.add_argument("--rows", nargs="+", choices=available, default=list(available), metavar="ROW")
    args = parser.parse_args(own)
    args.train = train_flags
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"| augmentation | {HEAD} |")
    print("| --- " * (HEAD.count("|") + 2) + "|")
    for title in args.rows:
        best = [train(title, available[title], seed, args) for seed in args.seeds]
        print(f"| {title} | {summary(best)} |", flush=True)


if __name__ == "__main__":
    main()
