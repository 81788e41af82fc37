"""The pictures of a run: samples with boxes, curves of precision and F1, curves of training."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from uhd.eval.draw import GREEN, ORANGE, Image, draw_boxes, save_png, sheet
from uhd.eval.mean_ap import AREA_RANGES, RECALL_GRID, Evaluation
from uhd.files import write_whole

History = Sequence[Mapping[str, float | None]]
"""One mapping an epoch with the names of metrics.jsonl; any but `epoch` may be missing or None."""

_DPI = 100
_MIN_SCALE = 4
_TILE_SIDE = 256
_MAX_COLUMNS = 6
_MAX_NAMED_CLASSES = 10
_LABEL_OF_MAP = {
    "mAP@0.5": "all (mAP@0.5)",
    "AP50_ge9px2": "≥ 9 px²",
    "AP50_9_64px2": "9–64 px²",
    "AP50_64_400px2": "64–400 px²",
    "AP50_gt400px2": "> 400 px²",
}
assert _LABEL_OF_MAP.keys() == {"mAP@0.5", *(f"AP50_{name}" for name in AREA_RANGES)}


@dataclass(frozen=True)
class Sample:
    """A picture to show: image [H,W,3] RGB uint8, truths [n,4] and boxes [k,4] xyxy 0-1, scores [k]."""

    image: Image
    truths: NDArray[np.floating]
    boxes: NDArray[np.floating]
    scores: NDArray[np.floating]
    caption: str = ""


def save_samples(path: Path | str, samples: Sequence[Sample]) -> None:
    """A sheet of pictures: truths in green, detections in orange with their scores, at least 4 times enlarged.

    Raises ValueError without any sample, OSError where the file cannot be written.
    """
    tiles = []
    for sample in samples:
        scale = max(_MIN_SCALE, _TILE_SIDE // max(sample.image.shape[:2]))
        tile = draw_boxes(sample.image, sample.truths, color=GREEN, scale=scale)
        tiles.append(draw_boxes(tile, sample.boxes, [f"{score:.2f}" for score in sample.scores], color=ORANGE))
    columns = min(math.ceil(math.sqrt(len(tiles))), _MAX_COLUMNS)
    save_png(path, sheet(tiles, max(columns, 1), [sample.caption for sample in samples]))


def save_pr_curve(path: Path | str, evaluation: Evaluation, class_names: Sequence[str]) -> None:
    """Interpolated precision against recall at IoU 0.5, a line a class and, for several, their mean.

    Classes without truths are left out; beyond ten classes the lines have no names. Raises OSError.
    """
    figure, axes = _figure(6, 5)
    present = np.flatnonzero(~np.isnan(evaluation.ap_by_class)).tolist()
    for label in present:
        text = f"AP {evaluation.ap_by_class[label]:.3f}  {class_names[label]}"
        named = len(present) <= _MAX_NAMED_CLASSES
        axes.plot(RECALL_GRID, evaluation.precision_by_recall[label], lw=1.2, label=text if named else "_", alpha=0.8)
    if len(present) > 1:
        mean = evaluation.precision_by_recall[present].mean(axis=0)
        axes.plot(RECALL_GRID, mean, color="black", lw=2.2, label=f"AP {evaluation.map50:.3f}  mean")
    if len(present) == 0:
        axes.text(0.5, 0.5, "no truths", ha="center", va="center", color="gray")
    axes.set(xlabel="Recall", ylabel="Precision", title=f"Precision and recall, mAP@0.5 {evaluation.map50:.4f}")
    _finish_unit_axes(axes)
    _save(path, figure)


def save_f1_curve(path: Path | str, evaluation: Evaluation) -> None:
    """F1, precision and recall of all classes together against the score threshold, best F1 marked. Raises OSError."""
    figure, axes = _figure(6, 5)
    curves, best = evaluation.by_confidence, evaluation.at_best_f1
    axes.plot(curves.threshold, curves.precision, color="tab:blue", lw=1.2, label="Precision")
    axes.plot(curves.threshold, curves.recall, color="tab:green", lw=1.2, label="Recall")
    axes.plot(curves.threshold, curves.f1, color="tab:red", lw=2.2, label="F1")
    axes.axvline(best.threshold, color="tab:red", lw=0.8, ls="--")
    text = f"best F1 {best.f1:.3f} at {best.threshold:.3f}"
    axes.plot([best.threshold], [best.f1], "o", color="tab:red", label=text)
    axes.set(xlabel="Confidence threshold", ylabel="", title="F1, precision and recall by confidence")
    _finish_unit_axes(axes)
    _save(path, figure)


def save_loss_curves(path: Path | str, history: History) -> None:
    """Three panels by epoch: loss terms (training solid, validation dashed), mAP by size, learning rate.

    Values that are missing, None or not finite are left out; validation is drawn for the terms that
    training has. Raises OSError.
    """
    figure = Figure(figsize=(14, 4.6), layout="constrained")
    losses, accuracy, rate = figure.subplots(1, 3, width_ratios=(2, 2, 1))
    _plot_losses(losses, history)
    for name, label in _LABEL_OF_MAP.items():
        style = {"color": "black", "lw": 2.2} if name == "mAP@0.5" else {"lw": 1.2}
        _plot_series(accuracy, history, f"val/{name}", label=label, **style)
    accuracy.set(title="AP at IoU 0.5 by area of the truth")
    accuracy.set_ylim(bottom=0)
    _plot_series(rate, history, "lr", color="tab:gray", lw=1.5)
    rate.set(title="Learning rate")
    rate.set_ylim(bottom=0)
    last_epoch = max((row["epoch"] or 0 for row in history), default=1)
    for axes in (losses, accuracy, rate):
        axes.set(xlabel="Epoch", xlim=(0.5, last_epoch + 0.5))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        _name_lines(axes, loc="upper left", bbox_to_anchor=(1, 1))
        if not axes.has_data():
            axes.text(0.5, 0.5, "nothing yet", ha="center", va="center", color="gray", transform=axes.transAxes)
    _save(path, figure)


def _plot_losses(axes: Axes, history: History) -> None:
    terms = {key.removeprefix("train/") for row in history for key in row if key.startswith("train/")}
    for index, term in enumerate(sorted(terms, key=lambda term: (term != "loss", term))):
        style = {"color": "black", "lw": 2.2} if term == "loss" else {"color": f"C{index % 10}", "lw": 1.2}
        _plot_series(axes, history, f"train/{term}", label=term, **style)
        _plot_series(axes, history, f"val/{term}", ls="--", **style)
    axes.set(title="Loss (training solid, validation dashed)")
    lowest = [np.min(np.asarray(line.get_ydata(), dtype=np.float64)) for line in axes.get_lines()]
    # Terms differ by orders of magnitude, and the first epochs by more.
    if lowest and min(lowest) > 0:
        axes.set_yscale("log")
        axes.minorticks_off()


def _plot_series(axes: Axes, history: History, key: str, **style: Any) -> None:
    """The epochs that have a finite value, marked while they are few; nothing where none has."""
    points = [(row["epoch"], value) for row in history if (value := row.get(key)) is not None and math.isfinite(value)]
    if points:
        epochs, values = zip(*points, strict=True)
        axes.plot(epochs, values, marker="o" if len(points) <= 20 else None, markersize=3, **style)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _finish_unit_axes(axes: Axes) -> None:
    axes.set(xlim=(0, 1), ylim=(0, 1.03))
    axes.grid(alpha=0.3)
    _name_lines(axes)


def _name_lines(axes: Axes, **place: Any) -> None:
    """A legend where a line has a name; names of classes are no formulas, whatever they contain."""
    if axes.get_legend_handles_labels()[0]:
        for text in axes.legend(fontsize="small", **place).get_texts():
            text.set_parse_math(False)


def _save(path: Path | str, figure: Figure) -> None:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=_DPI)
    write_whole(path, buffer.getvalue())
