"""What the augmentations take and give."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

_REFERENCE_SIDE = 640


@dataclass
class Sample:
    """One picture and its truths.

    image: uint8 [H,W,3], RGB; it may be a read-only view, so nobody writes into it. boxes: float32
    [G,4], xyxy, normalised to 0..1. labels: int64 [G], class 0..C-1, or `uhd.types.IGNORED` for a
    truth that an augmentation took away.
    """

    image: Image
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]


def length_scale(image: Image) -> float:
    """Pixels of this image [H,W,3] for each pixel of a 640x640 picture, in which lengths are given."""
    return math.sqrt(image.shape[0] * image.shape[1]) / _REFERENCE_SIDE
