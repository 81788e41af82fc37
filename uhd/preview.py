"""What augmentation does to training pictures: a sheet for each op and one of the whole pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uhd.augment import Op, Pipeline, Sample
from uhd.augment.pipeline import MultiImageOp
from uhd.data.dataset import DetectionDataset
from uhd.eval.draw import GREEN, ORANGE, draw_boxes, save_png, sheet
from uhd.types import IGNORED, PADDING

_COLUMNS = 8
_TILE_WIDTH = 256

Tile = tuple[NDArray[np.uint8], str]


class FixedStrength(np.random.Generator):
    """Random numbers whose `uniform` gives the same share, 0..1, of each range: ops draw their strength by it.

    Everything else is as random as in a generator of that seed, so that places and noise stay the same from one
    strength to the next.
    """

    def __init__(self, seed: list[int], share: float) -> None:
        super().__init__(np.random.PCG64(seed))
        self._share = share

    def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
        """The point of the range low..high at the share; an array where a size is given."""
        value = low + (np.asarray(high) - low) * self._share
        return float(value) if size is None and np.ndim(value) == 0 else np.broadcast_to(value, size or value.shape)


def preview_augmentation(dataset: DetectionDataset, count: int, out_dir: Path) -> list[Path]:
    """Draws what the transform of a data set does; returns the files: one an op, in its order, then pipeline.png.

    A row is a picture, count of them. On an op's sheet it stands as it is and then at increasing strength, from the
    lowest to the highest that the parameters allow; on the last sheet as the first epochs see it. Boxes are green where
    they are learned, orange where not. Raises OSError where out_dir cannot be written.
    """
    pipeline = dataset.transform
    assert pipeline is not None
    chosen = _pictures(dataset, count)
    paths = []
    for number, op in enumerate(pipeline.ops, start=1):
        tiles = [tile for index in chosen for tile in _strengths(op, dataset, index)]
        paths.append(_save(out_dir / f"{number:02}_{type(op).__name__}.png", tiles))
    tiles = [tile for index in chosen for tile in _epochs(pipeline, dataset, index)]
    return [*paths, _save(out_dir / "pipeline.png", tiles)]


def _pictures(dataset: DetectionDataset, count: int) -> list[int]:
    """Indices spread evenly over the pictures that hold a box, or over all where none does."""
    labelled = np.array([i for i, labels in enumerate(dataset.labels) if len(labels)] or range(len(dataset)))
    picked = np.linspace(0, len(labelled) - 1, min(count, len(labelled))).astype(int)
    return [int(index) for index in labelled[picked]]


def _strengths(op: Op, dataset: DetectionDataset, index: int) -> Iterator[Tile]:
    """The stored picture, and what the op makes of it from its lowest to its highest strength."""
    sample = dataset[index]
    yield _tile(sample, Path(dataset.paths[index]).name)
    for share in np.linspace(0, 1, _COLUMNS - 1):
        rng = FixedStrength([dataset.seed, index], float(share))
        if isinstance(op, MultiImageOp):
            result = op.combine(sample, rng, partial(dataset.draw, rng))
        else:
            result = op.apply(sample, rng)
        yield _tile(result, f"{type(op).__name__} {share:.0%}")


def _epochs(pipeline: Pipeline, dataset: DetectionDataset, index: int) -> Iterator[Tile]:
    """The stored picture, and what the first epochs train with."""
    yield _tile(dataset[index], Path(dataset.paths[index]).name)
    for epoch in range(_COLUMNS - 1):
        images, targets = dataset.__getitems__([(epoch, index)])
        real = targets.labels[0] != PADDING
        sample = Sample(images[0].numpy(), targets.boxes[0][real].numpy(), targets.labels[0][real].numpy())
        yield _tile(sample, f"epoch {epoch + 1}")


def _tile(sample: Sample, caption: str) -> Tile:
    scale = max(1, _TILE_WIDTH // sample.image.shape[1])
    ignored = sample.labels == IGNORED
    image = draw_boxes(sample.image, sample.boxes[ignored], color=ORANGE, scale=scale)
    return draw_boxes(image, sample.boxes[~ignored], color=GREEN), caption


def _save(path: Path, tiles: list[Tile]) -> Path:
    save_png(path, sheet([image for image, _ in tiles], _COLUMNS, [caption for _, caption in tiles]))
    return path
