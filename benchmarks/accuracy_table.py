"""What trained networks find beside what they cost: a Markdown table and a chart.

    python -m benchmarks.accuracy_table --chart docs/accuracy.png "cnn w64=runs/cnn" "ultratinyod w32=runs/w32"

Each argument is a title and a run folder (or a checkpoint), whose own validation is shown; nothing is validated anew.
Milliseconds are the median of a picture in onnxruntime, one thread, with decoding and suppression, the networks taking
turns.
"""

from __future__ import annotations

import uhd.process  # noqa: F401  # isort: skip - settings that torch reads when it is loaded

import argparse
import io
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from benchmarks.common import bare
from uhd.checkpoint import read_checkpoint
from uhd.config import ExportConfig
from uhd.export.build import build_network, finish, prepare, save
from uhd.export.report import median_milliseconds
from uhd.files import write_whole
from uhd.models import build_model, count_macs, count_parameters
from uhd.runtime import Detector

TITLE_WIDTH, TITLE_HEIGHT = 0.12, 0.03
"""Of a mark's title: decades of cost and mAP that it covers, roughly."""
COSTS = {"macs": "million multiply-adds for one picture", "ms": "milliseconds for one picture, one thread"}
"""What a chart can stand over, and its axis."""


@dataclass(frozen=True)
class Row:
    """One network; macs are multiply-adds for one picture, epochs those of its run, epoch that of the checkpoint."""

    title: str
    arch: str
    parameters: int
    macs: int
    milliseconds: float
    map50: float
    visible: float
    f1: float
    epoch: int
    epochs: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="TITLE=PATH", help="title and run folder, or checkpoint")
    add_options(parser)
    args = parser.parse_args()
    report({title: Path(path) for title, path in (text.split("=", 1) for text in args.runs)}, args)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `report` needs to know."""
    parser.add_argument("--chart", type=Path, help="PNG of mAP@0.5 over a cost")
    parser.add_argument("--over", choices=COSTS, default="macs", help="that cost")
    parser.add_argument("--repeats", type=int, default=500, help="timed pictures of each network")


def report(runs: Mapping[str, Path], args: argparse.Namespace) -> None:
    """Prints the table of runs (or checkpoints) by title, and writes the chart."""
    files = {title: path / "best.pt" if path.is_dir() else path for title, path in runs.items()}
    with tempfile.TemporaryDirectory() as folder:
        graphs = {
            title: exported(path, Path(folder) / f"{number}.onnx") for number, (title, path) in enumerate(files.items())
        }
        times = median_milliseconds({title: bare(Detector(graph)) for title, graph in graphs.items()}, args.repeats)
    rows = [read(title, path, times[title]) for title, path in files.items()]
    print("| network | parameters | multiply-adds | ms | mAP@0.5 | AP50 of 9 px² and more | best F1 | epoch |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        cost = f"{row.parameters:,} | {row.macs / 1e6:,.1f} M | {row.milliseconds:.2f}"
        found = f"{row.map50:.3f} | {row.visible:.3f} | {row.f1:.3f}"
        print(f"| {row.title} | {cost} | {found} | {row.epoch} of {row.epochs} |")
    if args.chart:
        write_whole(args.chart, chart(rows, args.over))


def exported(checkpoint_path: Path, path: Path) -> Path:
    """Writes the whole detector of a checkpoint as ONNX."""
    checkpoint = read_checkpoint(checkpoint_path)
    export = prepare(checkpoint, checkpoint.config, ExportConfig(checkpoint=str(checkpoint_path)))
    save(finish(export, build_network(export)), path)
    return path


def read(title: str, path: Path, milliseconds: float) -> Row:
    """A checkpoint, with what its validation found."""
    checkpoint = read_checkpoint(path)
    cfg, found = checkpoint.config, checkpoint.metrics
    model = build_model(cfg.model)
    return Row(
        title,
        cfg.model.arch,
        count_parameters(model),
        count_macs(model, *cfg.input.img_size),
        milliseconds,
        found["val/mAP@0.5"],
        found["val/AP50_ge9px2"],
        found["val/best_f1"],
        checkpoint.state["epoch"],
        cfg.optim.epochs,
    )


def chart(rows: list[Row], over: str) -> bytes:
    """PNG: mAP@0.5 over a cost, one mark a network, one colour an architecture."""
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    places = [(row.milliseconds if over == "ms" else row.macs / 1e6, row.map50) for row in rows]
    for arch in dict.fromkeys(row.arch for row in rows):
        own = [place for row, place in zip(rows, places, strict=True) if row.arch == arch]
        axes.scatter(*zip(*own, strict=True), label=arch, s=36, zorder=3)
    for row, place in zip(rows, places, strict=True):
        title = row.title.removeprefix(row.arch).strip(", ") or row.title
        offset = (5, -11) if any(_is_in_the_way(other, place) for other in places) else (5, 5)
        axes.annotate(title, place, xytext=offset, textcoords="offset points", fontsize=8)
    axes.set_xscale("log")
    for axis_formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis_formatter(FuncFormatter(_short))
    axes.set(xlabel=COSTS[over], ylabel="mAP@0.5")
    axes.set_ylim(0, 1.12 * max(row.map50 for row in rows))
    axes.margins(x=0.2)
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="upper left")
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()


def _is_in_the_way(mark: tuple[float, float], labelled: tuple[float, float]) -> bool:
    """Whether a mark lies where the title to the upper right of another one would be."""
    right, up = math.log10(mark[0] / labelled[0]), mark[1] - labelled[1]
    return 0 < right < TITLE_WIDTH and 0 <= up < TITLE_HEIGHT


def _short(cost: float, _: int) -> str:
    """A tick's number; none for those of the log scale that would stand too close."""
    return f"{cost:g}" if f"{cost:e}"[0] in "1235" else ""


if __name__ == "__main__":
    main()
