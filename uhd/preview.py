"""What augmentation does to training pictures: a sheet for each op and one of the whole pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uhd.augment import Op, Pipeline, Sample
from uhd.augment.pipeline import apply_op
from uhd.data.dataset import DetectionDataset
from uhd.eval.draw import save_png, sheet
from uhd.inspection import draw_truths

_COLUMNS = 8
_TILE_WIDTH = 256

Tile = tuple[NDArray[np.uint8], str]


class FixedStrength(np.random.Generator):
    """Random numbers whose `uniform` gives the same share, 0..1, of each range: ops draw their strength by it.

    Everything else is as random as in a generator of that seed. was_asked says whether a strength has been drawn.
    """

    def __init__(self, seed: list[int], share: float) -> None:
        super().__init__(np.random.PCG64(seed))
        self._share = share
        self.was_asked = False

    def uniform(self, low: Any = 0.0, high: Any = 1.0, size: Any = None) -> Any:
        """The point of the range low..high at the share; an array where a size is given."""
        self.was_asked = True
        value = low + (np.asarray(high) - low) * self._share
        return float(value) if size is None and np.ndim(value) == 0 else np.broadcast_to(value, size or value.shape)


def preview_augmentation(dataset: DetectionDataset, count: int, out_dir: Path) -> list[Path]:
    """Draws what the transform of a data set does; returns the files: one an op, in its order, then pipeline.png.

    A row is a picture, count of them. On an op's sheet it stands as the op gets it, of the working size or of the
    network's, and then as the op changes it: from the lowest to the highest value of each range that the parameters
    give, all at once; or several times where the op has no range. On the last sheet it stands as the first epochs see
    it. Sheets of earlier ops go. Raises OSError where out_dir cannot be written.
    """
    pipeline = dataset.transform
    assert pipeline is not None
    for old in out_dir.glob("[0-9][0-9]_*.png"):
        old.unlink()
    chosen = _pictures(dataset, count)
    paths = []
    for number, op in enumerate(pipeline.ops, start=1):
        tiles = [tile for index in chosen for tile in _strengths(op, pipeline, dataset, index)]
        paths.append(_save(out_dir / f"{number:02}_{type(op).__name__}.png", tiles))
    tiles = [tile for index in chosen for tile in _epochs(dataset, index)]
    return [*paths, _save(out_dir / "pipeline.png", tiles)]


def _pictures(dataset: DetectionDataset, count: int) -> list[int]:
    """Indices spread evenly over the pictures that hold a box, or over all where none does."""
    labelled = np.array([i for i, labels in enumerate(dataset.labels) if len(labels)] or range(len(dataset)))
    picked = np.linspace(0, len(labelled) - 1, min(count, len(labelled))).astype(int)
    return [int(index) for index in labelled[picked]]


def _strengths(op: Op, pipeline: Pipeline, dataset: DetectionDataset, index: int) -> Iterator[Tile]:
    """The picture as the op gets it, and what the op makes of it from its lowest to its highest strength."""

    def sized(sample: Sample) -> Sample:
        return pipeline.resized(sample) if pipeline.sees_output(op) else sample

    sample = sized(dataset[index])
    height, width = sample.image.shape[:2]
    yield _tile(sample, f"{width}x{height} {Path(dataset.paths[index]).name}")

    def changed(rng: FixedStrength) -> Sample:
        return apply_op(op, sample, rng, lambda: sized(dataset.draw(rng)))

    for column, share in enumerate(np.linspace(0, 1, _COLUMNS - 1)):
        rng = FixedStrength([dataset.seed, index], float(share))
        result, caption = changed(rng), f"{share:.0%} of its range"
        if not rng.was_asked:
            result, caption = changed(FixedStrength([dataset.seed, index, column], 0.5)), f"draw {column + 1}"
        yield _tile(result, caption)


def _epochs(dataset: DetectionDataset, index: int) -> Iterator[Tile]:
    """The stored picture, and what the first epochs train with."""
    yield _tile(dataset[index], Path(dataset.paths[index]).name)
    for epoch in range(_COLUMNS - 1):
        yield _tile(dataset.as_trained(epoch, index), f"epoch {epoch + 1}")


def _tile(sample: Sample, caption: str) -> Tile:
    return draw_truths(sample, _TILE_WIDTH), caption


def _save(path: Path, tiles: list[Tile]) -> Path:
    save_png(path, sheet([image for image, _ in tiles], _COLUMNS, [caption for _, caption in tiles]))
    return path
