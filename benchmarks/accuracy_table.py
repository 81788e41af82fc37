"""What trained networks find beside what they cost: a Markdown table and a chart.

    python -m benchmarks.accuracy_table --chart docs/accuracy.png "cnn w64=runs/cnn" "ultratinyod w32=runs/w32"

Each argument is a title and a run folder (or a checkpoint), whose own validation is shown; nothing is validated anew.
"""

from __future__ import annotations

import uhd.process  # noqa: F401  # isort: skip - settings that torch reads when it is loaded

import argparse
import io
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from uhd.checkpoint import read_checkpoint
from uhd.files import write_whole
from uhd.models import build_model, count_macs, count_parameters


@dataclass(frozen=True)
class Row:
    """One network; macs are multiply-adds for one picture, epochs those of its run, epoch that of the checkpoint."""

    title: str
    arch: str
    parameters: int
    macs: int
    map50: float
    visible: float
    f1: float
    epoch: int
    epochs: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="TITLE=PATH", help="title and run folder, or checkpoint")
    parser.add_argument("--chart", type=Path, help="PNG of AP50 over multiply-adds")
    args = parser.parse_args()
    rows = [read(*text.split("=", 1)) for text in args.runs]
    print("| network | parameters | multiply-adds | mAP@0.5 | AP50 of 9 px² and more | best F1 | epoch |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        cost = f"{row.parameters:,} | {row.macs / 1e6:,.1f} M"
        found = f"{row.map50:.3f} | {row.visible:.3f} | {row.f1:.3f}"
        print(f"| {row.title} | {cost} | {found} | {row.epoch} of {row.epochs} |")
    if args.chart:
        write_whole(args.chart, chart(rows))


def read(title: str, path: str) -> Row:
    """The best checkpoint of a run, with what its validation found."""
    checkpoint = read_checkpoint(Path(path) / "best.pt" if Path(path).is_dir() else path)
    cfg, found = checkpoint.config, checkpoint.metrics
    model = build_model(cfg.model)
    return Row(
        title,
        cfg.model.arch,
        count_parameters(model),
        count_macs(model, *cfg.input.img_size),
        found["val/mAP@0.5"],
        found["val/AP50_ge9px2"],
        found["val/best_f1"],
        checkpoint.state["epoch"],
        cfg.optim.epochs,
    )


def chart(rows: list[Row]) -> bytes:
    """PNG: mAP@0.5 over multiply-adds, one mark a network, one colour an architecture."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    for arch in dict.fromkeys(row.arch for row in rows):
        chosen = [row for row in rows if row.arch == arch]
        axes.scatter([row.macs / 1e6 for row in chosen], [row.map50 for row in chosen], label=arch, s=36, zorder=3)
    for row in rows:
        axes.annotate(
            row.title.removeprefix(row.arch).strip(", ") or row.title,
            (row.macs / 1e6, row.map50),
            xytext=(5, 5),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set_xscale("log")
    axes.set(xlabel="million multiply-adds for one 64x64 picture", ylabel="mAP@0.5")
    axes.set_ylim(0, 1.12 * max(row.map50 for row in rows))
    axes.margins(x=0.15)
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="upper left")
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()


if __name__ == "__main__":
    main()
