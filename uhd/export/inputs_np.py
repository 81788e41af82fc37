"""How a picture of the right size becomes the input of a graph. numpy only."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from uhd.export import nanodet_np
from uhd.export.decode_np import Floats
from uhd.export.metadata import Metadata

Feeder = Callable[[NDArray[np.uint8], Floats], None]
"""Writes [H,W,3] BGR uint8 into one picture [3,H,W] of the input."""


def feed_rgb(image: NDArray[np.uint8], out: Floats) -> None:
    """RGB in 0..1, by the same arithmetic as in training: float32 of the rounded pixel, divided by 255."""
    np.divide(image[..., ::-1].transpose(2, 0, 1), np.float32(255), out=out)


_FEEDERS: dict[str, Feeder] = {"0-1": feed_rgb, nanodet_np.NAME: nanodet_np.feed}


def build_feeder(metadata: Metadata) -> Feeder:
    """The feeder of a file's input range."""
    return _FEEDERS[metadata.input_range]
