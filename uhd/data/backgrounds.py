"""Pictures without a box, shown more often: a set that holds few of them teaches little about empty scenes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uhd.config.run import MAX_BACKGROUND_SHOWS
from uhd.data.dataset import DetectionDataset


@dataclass(frozen=True)
class Repeats:
    """Pictures that an epoch shows more than once: indices [n], and how many further shows they have together."""

    indices: NDArray[np.int64]
    shows: int

    def places(self, num_images: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """[shows]: a place (see `Key`) for each of them; where some are shown once more than others, rng says which."""
        rounds, rest = divmod(self.shows, len(self.indices))
        whole = (self.indices[None] + num_images * np.arange(1, rounds + 1)[:, None]).ravel()
        return np.concatenate([whole, rng.choice(self.indices, rest, replace=False) + num_images * (rounds + 1)])


def repeated_backgrounds(dataset: DetectionDataset, share: float) -> Repeats | None:
    """What an epoch shows again so that pictures without a box are this share (0 to 1) of it; None for nothing.

    None is shown more than `MAX_BACKGROUND_SHOWS` times: a handful would be known by heart before it taught anything.
    """
    backgrounds = dataset.backgrounds()
    lacking = math.ceil((share * len(dataset) - len(backgrounds)) / (1 - share))
    shows = min(lacking, (MAX_BACKGROUND_SHOWS - 1) * len(backgrounds))
    return Repeats(backgrounds, shows) if shows > 0 else None
