"""What each architecture costs: a Markdown table of parameters, multiply-adds, file size and milliseconds.

    python -m benchmarks.model_table
    python -m benchmarks.model_table --networks "nanodet s (default)" --flags "--img-size 320x320 --num-classes 80"

At 64x64 and one class, unless --flags say otherwise. "folded" counts the parameters that are left when the batch norms
are folded into their convolutions. The file is the exported graph with decoding and suppression inside; its time is the
median of 1,000 runs in onnxruntime with one thread, on black pictures, the graphs taking turns. The weights are random,
which changes the time of the suppression only. --raw times the graphs that end with the raw maps too.
"""

from __future__ import annotations

import uhd.process  # noqa: F401  # isort: skip - settings that torch reads when it is loaded

import argparse
import logging
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import ANCHORS, FLAGS, bare, untrained
from uhd.config import ExportConfig
from uhd.export.build import build_network, finish, prepare, save
from uhd.export.report import median_milliseconds
from uhd.models import build_model, count_macs, count_parameters, fold_batchnorm
from uhd.runtime import Detector

FIVE_ANCHORS = " ".join(ANCHORS.split()[1:6])
TWELVE_ANCHORS = " ".join((2 * ANCHORS.split())[:12])
CNN = ["--arch", "cnn", "--use-batchnorm"]
ANCHOR_HEAD = ["--use-anchor", "--use-improved-head", "--anchors", FIVE_ANCHORS]
TINYSSD = ["--arch", "tinyssd", "--use-batchnorm"]
PUBLISHED = ["--tinyssd-priors", "published"]
NETWORKS: dict[str, list[str]] = {
    "cnn w32 (default)": CNN,
    "cnn w64, stride 8, skip": [*CNN, "--cnn-width", "64", "--output-stride", "8", "--use-skip"],
    "cnn w64, stride 8, skip, anchors": [
        *CNN, "--cnn-width", "64", "--output-stride", "8", "--use-skip", *ANCHOR_HEAD,
    ],
    "cnn microcspnet, anchors": [*CNN, "--backbone", "microcspnet", *ANCHOR_HEAD],
    "cnn ultratinyresnet, anchors": [*CNN, "--backbone", "ultratinyresnet", *ANCHOR_HEAD],
    "cnn enhanced-shufflenet, anchors": [*CNN, "--backbone", "enhanced-shufflenet", *ANCHOR_HEAD],
    "nanodet half, neck 64": ["--arch", "nanodet", "--nanodet-width", "0.5", "--nanodet-neck-channels", "64"],
    "nanodet s (default)": ["--arch", "nanodet"],
    "transformer (default)": ["--arch", "transformer"],
    "transformer, fpn": ["--arch", "transformer", "--use-fpn"],
    "tinyssd fire": [*TINYSSD, *PUBLISHED, "--tinyssd-body", "fire"],
    "tinyssd fire, one level": [*TINYSSD, "--tinyssd-levels", "1", "--anchors", TWELVE_ANCHORS],
    "tinyssd conv": [*TINYSSD, *PUBLISHED, "--tinyssd-body", "conv"],
    **{f"ultratinyod w{width}": [*FLAGS, "--cnn-width", str(width), "--anchors", ANCHORS] for width in (16, 32, 64)},
}  # fmt: skip
"""The networks that the accuracy figures are of, and the default of each architecture."""


@dataclass(frozen=True)
class Cost:
    """Of one network; macs are multiply-adds for one picture, size is the file's in bytes."""

    parameters: int
    folded: int
    macs: int
    size: int
    files: dict[str, Path]
    """By the column that shows their time."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000, help="runs of each graph")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NETWORK")
    parser.add_argument("--flags", type=shlex.split, default=[], help="further flags of train.py for all of them")
    parser.add_argument("--raw", action="store_true", help="time the graphs without decoding and suppression too")
    args = parser.parse_args()
    logging.getLogger("uhd").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        costs = {
            title: cost_of([*NETWORKS[title], *args.flags], Path(folder) / str(number), raw=args.raw)
            for number, title in enumerate(args.networks)
        }
        files = {(title, column): path for title, cost in costs.items() for column, path in cost.files.items()}
        times = median_milliseconds({key: bare(Detector(path)) for key, path in files.items()}, args.runs)
    columns = ["ms", "ms, raw"] if args.raw else ["ms"]
    print("| network | parameters | folded | multiply-adds | ONNX file, kB |", " | ".join(columns), "|")
    print("| --- " * (5 + len(columns)) + "|")
    for title, cost in costs.items():
        counts = f"{cost.parameters:,} | {cost.folded:,} | {cost.macs:,} | {cost.size / 1000:,.0f}"
        print(f"| {title} | {counts} |", " | ".join(f"{times[title, column]:.3f}" for column in columns), "|")


def cost_of(flags: list[str], folder: Path, *, raw: bool) -> Cost:
    """Exports the network that the flags of train.py ask for into a new folder, and counts.

    raw: whether the graph that ends with the raw maps is exported too.
    """
    checkpoint = untrained(flags, folder)
    cfg = checkpoint.config
    files = {"ms": folder / "model.onnx"} | ({"ms, raw": folder / "raw.onnx"} if raw else {})
    for column, path in files.items():
        options = ExportConfig(checkpoint=str(checkpoint.path), merge_postprocess=column == "ms")
        export = prepare(checkpoint, cfg, options)
        save(finish(export, build_network(export)), path)
    model = build_model(cfg.model)
    folded = count_parameters(fold_batchnorm(model))
    macs = count_macs(model, *cfg.input.img_size)
    return Cost(count_parameters(model), folded, macs, files["ms"].stat().st_size, files)


if __name__ == "__main__":
    main()
