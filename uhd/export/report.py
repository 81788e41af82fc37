"""FP32 against INT8, as ONNX and as TFLite: a table and a picture of what quantisation costs and brings."""

from __future__ import annotations

import functools
import io
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from onnx import ModelProto

from uhd.export.build import Export
from uhd.export.metadata import INPUT_NAME
from uhd.export.pictures import Detect, detect_from_files, inputs_of, judge
from uhd.export.verify import detect_with_tflite, detector_of, pictures_of
from uhd.files import write_whole
from uhd.runtime import load_session

log = logging.getLogger("uhd")

LATENCY_RUNS = 1000
_BLOCK, _WARM_UP = 50, 5


@dataclass(frozen=True)
class Figures:
    """What is compared of a file: mAP@0.5 (None without labels), bytes, and milliseconds a picture on one thread.

    Of TFLite there are no milliseconds: what a computer takes says nothing of a microcontroller.
    """

    map50: float | None
    size: int
    milliseconds: float | None


def report_files(output: Path) -> tuple[Path, Path]:
    """The table and the picture that belong to an exported file."""
    stem = output.with_suffix("").name
    return output.with_name(f"{stem}_report.md"), output.with_name(f"{stem}_report.png")


def write_report(export: Export, models: Mapping[str, ModelProto], output: Path) -> None:
    """Measures the models and writes the files of `report_files`; logs the table."""
    tflite = Path(export.options.tflite) if export.options.tflite else None
    with pictures_of(export) as dataset:

        def mean_ap(detect: Detect) -> float | None:
            return judge(dataset, detect, export.config).map50 if dataset.num_boxes else None

        latencies = measure_latency(models, inputs_of(dataset))
        figures: dict[str, Figures] = {}
        for name, model in models.items():
            with detector_of(export, model) as detector:
                found = mean_ap(detect_from_files(detector))
            figures[name] = Figures(found, len(model.SerializeToString()), latencies[name])
        if tflite:
            figures["INT8 TFLite"] = Figures(mean_ap(detect_with_tflite(export, tflite)), tflite.stat().st_size, None)
        source = f"{len(dataset)} pictures, {dataset.num_boxes} boxes"
    table = format_table(figures)
    heading = f"{output.name}, from {export.options.checkpoint}; mAP on {source}"
    text_file, picture_file = report_files(output)
    write_whole(text_file, f"{heading}\n\n{table}\n".encode())
    write_whole(picture_file, _chart(figures))
    for line in table.splitlines():
        log.info("%s", line)
    log.info("wrote %s and %s", text_file, picture_file)


def measure_latency(models: Mapping[str, ModelProto], inputs: NDArray[np.float32]) -> dict[str, float]:
    """Median milliseconds of one picture of [n,3,H,W] on one thread, by the names of the models."""
    calls = {}
    for name, model in models.items():
        session = load_session(model.SerializeToString(), threads=1)
        pictures = itertools.cycle(inputs)
        calls[name] = functools.partial(_run_next, session.run, pictures)
    return median_milliseconds(calls, LATENCY_RUNS)


def _run_next(run: Callable[..., object], pictures: Iterator[NDArray[np.float32]]) -> None:
    run(None, {INPUT_NAME: next(pictures)[None]})


def median_milliseconds(calls: Mapping[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Median time of each call. They take turns in blocks, so that all meet the same noise, and each its own cache."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(-(-runs // _BLOCK)):
        for name, call in calls.items():
            for _ in range(_WARM_UP):
                call()
            for _ in range(min(_BLOCK, runs)):
                start = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(times)) * 1e3 for name, times in seconds.items()}


def format_table(figures: Mapping[str, Figures]) -> str:
    """A Markdown table, each row beside the first."""
    base = next(iter(figures.values()))
    lines = [
        "| | mAP@0.5 | difference | bytes | ratio | ms, 1 thread | times faster |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in figures.items():
        scores = "- | -"
        if row.map50 is not None and base.map50 is not None:
            scores = f"{row.map50:.5f} | {row.map50 - base.map50:+.5f}"
        speed = "- | -"
        if row.milliseconds is not None and base.milliseconds is not None:
            speed = f"{row.milliseconds:.3f} | {base.milliseconds / row.milliseconds:.2f}"
        lines.append(f"| {name} | {scores} | {row.size:,} | {row.size / base.size:.3f} | {speed} |")
    return "\n".join(lines)


def _chart(figures: Mapping[str, Figures]) -> bytes:
    """PNG: mAP, size and latency side by side."""
    rows = list(figures.values())
    panels: dict[str, list[float | None]] = {
        "mAP@0.5": [row.map50 for row in rows],
        "size in kB": [row.size / 1e3 for row in rows],
        "ms a picture, 1 thread": [row.milliseconds for row in rows],
    }
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for axes, (title, values) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        heights = [value or 0.0 for value in values]
        bars = axes.bar(list(figures), heights, color=["0.6", "tab:green", "tab:blue"][: len(figures)], width=0.6)
        axes.bar_label(bars, labels=["-" if value is None else f"{value:.4g}" for value in values], padding=2)
        axes.set_title(title)
        axes.set_ylim(0, max(heights) * 1.15 or 1)
        axes.spines[["top", "right"]].set_visible(False)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()
