"""Where a target may lie on a picture: how much of it the borders and other targets leave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uhd.config import PasteConfig
from uhd.data.paste.cutout import Box, Cutout, Mask, box_of

_TRIES = 30


class Placed:
    """A cut-out with its upper left corner at (x, y) of a picture, maybe beyond its borders."""

    def __init__(self, cutout: Cutout, corner: tuple[int, int], size: tuple[int, int]) -> None:
        """size: (height, width) of the picture."""
        self.cutout = cutout
        (x, y), (height, width) = corner, size
        down, across = cutout.solid.shape
        self.window = Box(max(x, 0), max(y, 0), min(x + across, width), min(y + down, height))
        """The part of the picture that it lies on; empty, maybe with sides below 0, where it lies beside it."""
        self._corner = corner
        self.inside: Mask = self.part_of(cutout.solid)
        """Its solid pixels within the window."""
        self.seen: Mask = self.inside.copy()
        """Those of them that no later target covers."""

    def part_of(self, values: NDArray[Any]) -> NDArray[Any]:
        """What lies within the window of an array of the cut-out's size."""
        (x, y), window = self._corner, self.window
        return values[max(window.y1 - y, 0) : max(window.y2 - y, 0), max(window.x1 - x, 0) : max(window.x2 - x, 0)]

    @property
    def visible_share(self) -> float:
        """Seen pixels by all solid ones."""
        return float(np.count_nonzero(self.seen) / np.count_nonzero(self.cutout.solid))

    def box(self) -> Box:
        """Around its solid pixels in the picture, those that later targets cover included."""
        found = box_of(self.inside)
        assert found is not None
        x, y = self.window.x1, self.window.y1
        return Box(found.x1 + x, found.y1 + y, found.x2 + x, found.y2 + y)


def find_place(
    rng: np.random.Generator, cfg: PasteConfig, cutout: Cutout, earlier: Sequence[Placed], size: tuple[int, int]
) -> Placed | None:
    """Puts a cut-out on a picture of size (height, width), over earlier ones, from which it takes what it covers.

    Of --min-visible and --max-overlap neither is violated, for it or for them; None where no such place is found.
    """
    solid = box_of(cutout.solid)
    assert solid is not None
    x_low, x_high = _range(solid.x2 - solid.x1, size[1], cfg.min_visible)
    y_low, y_high = _range(solid.y2 - solid.y1, size[0], cfg.min_visible)
    if x_low > x_high or y_low > y_high:
        return None
    for _ in range(_TRIES):
        x, y = int(rng.integers(x_low, x_high + 1)), int(rng.integers(y_low, y_high + 1))
        candidate = Placed(cutout, (x - solid.x1, y - solid.y1), size)
        if not candidate.inside.any() or candidate.visible_share < cfg.min_visible:
            continue
        remaining = [_uncovered(each, candidate, cfg) for each in earlier]
        if all(seen is not None for seen in remaining):
            for each, seen in zip(earlier, remaining, strict=True):
                assert seen is not None
                each.seen = seen
            return candidate
    return None


def _range(side: int, limit: int, min_visible: float) -> tuple[int, int]:
    """Where a side may begin so that the share min_visible of it can lie within 0..limit; empty where none can."""
    beyond = int((1 - min_visible) * side)
    return -beyond, limit - side + beyond


def _uncovered(lower: Placed, upper: Placed, cfg: PasteConfig) -> Mask | None:
    """What is still seen of a target below another one; None where that is too little, or they overlap too much."""
    a, b = lower.window, upper.window
    x1, y1, x2, y2 = max(a.x1, b.x1), max(a.y1, b.y1), min(a.x2, b.x2), min(a.y2, b.y2)
    if x1 >= x2 or y1 >= y2:
        return lower.seen
    part = slice(y1 - a.y1, y2 - a.y1), slice(x1 - a.x1, x2 - a.x1)
    cover = upper.inside[y1 - b.y1 : y2 - b.y1, x1 - b.x1 : x2 - b.x1]
    smaller = min(np.count_nonzero(lower.inside), np.count_nonzero(upper.inside))
    if np.count_nonzero(lower.inside[part] & cover) > cfg.max_overlap * smaller:
        return None
    seen = lower.seen.copy()
    seen[part] &= ~cover
    least = max(1, cfg.min_visible * np.count_nonzero(lower.cutout.solid))
    return seen if np.count_nonzero(seen) >= least else None
