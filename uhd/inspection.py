"""What a data set holds, as the network will see it: text, a sheet of labelled samples, a chart of box sizes."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from uhd.anchors import auto_anchors, mean_best_iou
from uhd.augment import Sample
from uhd.config import AnchorSizesConfig, Config
from uhd.data.dataset import DetectionDataset
from uhd.eval.draw import GREEN, ORANGE, draw_boxes, save_png, sheet
from uhd.files import write_whole
from uhd.types import IGNORED

AREA_EDGES = (9, 64, 400)
"""Network pixels that part the box sizes; a person below the first cannot be seen."""

_SAMPLES = 24
_COLUMNS = 8
_TILE_WIDTH = 192
_QUANTILES = (0, 5, 25, 50, 75, 95, 100)


def inspect_data(train: DetectionDataset, val: DetectionDataset, cfg: Config, out_dir: Path) -> str:
    """Describes both sets and writes samples.png and box_sizes.png to out_dir; returns the text.

    Box sizes are in pixels of the network's input, cfg.input.img_size. Training samples are shown as the first epoch
    sees them. Raises OSError where out_dir cannot be written.
    """
    sets = {name: dataset for name, dataset in (("training", train), ("validation", val)) if len(dataset)}
    lines = [line for name, dataset in sets.items() for line in _describe(name, dataset, cfg)]
    lines += _describe_anchors(train, cfg)
    out_dir.mkdir(parents=True, exist_ok=True)
    if sets:
        tiles = [tile for name, dataset in sets.items() for tile in _tiles(name, dataset, cfg)]
        save_png(out_dir / "samples.png", sheet([image for image, _ in tiles], _COLUMNS, [text for _, text in tiles]))
        lines.append(f"wrote {out_dir / 'samples.png'} (green: taught, orange: ignored)")
    write_whole(out_dir / "box_sizes.png", _chart({name: _pixel_sizes(dataset, cfg) for name, dataset in sets.items()}))
    lines.append(f"wrote {out_dir / 'box_sizes.png'}")
    return "\n".join(lines)


def area_shares(areas: NDArray[np.floating]) -> NDArray[np.float64]:
    """Shares (sum 1) of areas [n] in square network pixels below, between and above AREA_EDGES; zeros without boxes."""
    counts = np.bincount(np.digitize(areas, AREA_EDGES), minlength=len(AREA_EDGES) + 1)
    return counts / max(len(areas), 1)


def _describe(name: str, dataset: DetectionDataset, cfg: Config) -> Iterator[str]:
    yield f"{name}: {len(dataset)} pictures, {dataset.num_boxes} boxes, {dataset.num_backgrounds} without a box"
    labels = dataset.labels.values
    per_class = np.bincount(labels[labels != IGNORED], minlength=len(cfg.labels.class_names))
    for class_name, count in zip(cfg.labels.class_names, per_class, strict=True):
        yield f"  {class_name}: {count} boxes"
    sizes = _pixel_sizes(dataset, cfg)
    if len(sizes):
        yield "  in network pixels        " + "".join(f"{q:>7}%" for q in _QUANTILES)
        for title, values in (("width", sizes[:, 0]), ("height", sizes[:, 1]), ("area", sizes.prod(axis=1))):
            yield f"  {title:<25}" + "".join(f"{value:8.1f}" for value in np.percentile(values, _QUANTILES))
        titles = (f"below {AREA_EDGES[0]}", *(f"{a}-{b}" for a, b in itertools.pairwise(AREA_EDGES)))
        titles = (*titles, f"above {AREA_EDGES[-1]}")
        shares = area_shares(sizes.prod(axis=1))
        listed = ", ".join(f"{title}: {share:.1%}" for title, share in zip(titles, shares, strict=True))
        yield f"  boxes by area in px2     {listed}"
    yield from _describe_problems(dataset)


def _describe_problems(dataset: DetectionDataset) -> Iterator[str]:
    problems = dataset.problems
    counts = {
        "pictures cannot be read and are left out": len(problems.unreadable),
        "bad label lines are dropped": problems.bad_lines,
        "boxes reach out of their pictures and are clipped": problems.clipped,
        "boxes have no area inside their pictures and are dropped": problems.dropped,
        "pictures share their label file with another picture": problems.shared_labels,
        "boxes are of other classes than those chosen": problems.other_classes,
        "regions (crowds, difficult objects) are neither taught nor background": problems.ignored,
        "pictures are not listed in the annotations and are left out": problems.unlisted,
    }
    yield from (f"  {count} {text}" for text, count in counts.items() if count)
    yield from (f"    {line}" for line in problems.unreadable[:10])
    yield from (f"  class {name} has no box" for name in problems.missing_classes)


def _describe_anchors(train: DetectionDataset, cfg: Config) -> Iterator[str]:
    """The anchors that training would start with, and how well they fit the boxes that it teaches."""
    boxes = np.concatenate([np.empty((0, 4)), *train.taught_boxes()])
    if not isinstance(cfg.model, AnchorSizesConfig) or not cfg.model.anchor_counts or not len(boxes):
        return
    sizes = boxes[:, 2:] - boxes[:, :2]
    if cfg.model.anchors is None:
        anchors, fit = auto_anchors(sizes, sum(cfg.model.anchor_counts), cfg.input.img_size, cfg.data.seed)
    else:
        anchors = np.array(cfg.model.anchors)
        fit = mean_best_iou(sizes, anchors)
    listed = " ".join(f"{w:.1f}x{h:.1f}" for w, h in anchors * cfg.input.img_size[::-1])
    yield f"anchors (width x height in network pixels): {listed}; mean best IoU {fit:.3f}"


def _pixel_sizes(dataset: DetectionDataset, cfg: Config) -> NDArray[np.float64]:
    """(width, height) [n,2] of all boxes in network pixels."""
    boxes = dataset.truths().values.astype(np.float64)
    sizes: NDArray[np.float64] = (boxes[:, 2:] - boxes[:, :2]) * cfg.input.img_size[::-1]
    return sizes


def _tiles(name: str, dataset: DetectionDataset, cfg: Config) -> Iterator[tuple[NDArray[np.uint8], str]]:
    """Pictures with their boxes and captions, spread evenly over the set."""
    names = cfg.labels.class_names if len(cfg.labels.class_names) > 1 else None
    for index in np.unique(np.linspace(0, len(dataset) - 1, _SAMPLES).astype(int)).tolist():
        tile = draw_truths(dataset.as_trained(0, index), _TILE_WIDTH, names)
        yield tile, f"{name} {Path(dataset.paths[index]).name}"


def draw_truths(sample: Sample, width: int, names: Sequence[str] | None = None) -> NDArray[np.uint8]:
    """A sample enlarged to about so many pixels across: green what is taught, with names if given, orange the rest."""
    scale = max(1, width // sample.image.shape[1])
    ignored = sample.labels == IGNORED
    texts = None if names is None else [names[label] for label in sample.labels[~ignored]]
    image = draw_boxes(sample.image, sample.boxes[~ignored], texts, GREEN, scale)
    return draw_boxes(image, sample.boxes[ignored], color=ORANGE)


def _chart(sizes: dict[str, NDArray[np.float64]]) -> bytes:
    """PNG: how many boxes have which size, and their width against their height."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    histogram, scatter = figure.subplots(1, 2)
    sides = {name: np.sqrt(each.prod(axis=1)) for name, each in sizes.items()}
    bins = np.linspace(0, max((each.max(initial=1) for each in sides.values()), default=1), 41)
    for name, each in sizes.items():
        label = f"{name}: {len(each)} boxes"
        histogram.hist(sides[name], bins=bins, histtype="step", density=len(each) > 0, label=label)
        scatter.scatter(each[:, 0], each[:, 1], s=4, alpha=0.4, label=name)
    for edge in AREA_EDGES:
        histogram.axvline(edge**0.5, color="0.7", linewidth=0.8)
    histogram.set(xlabel="square root of the area in network pixels", ylabel="density", title="Box sizes")
    scatter.set(xlabel="width in network pixels", ylabel="height in network pixels", title="Box shapes")
    if sizes:
        histogram.legend()
        scatter.legend()
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return png.getvalue()
