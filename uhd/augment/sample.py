"""What the augmentations take and give."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass
class Sample:
    """One picture and its truths.

    image: uint8 [H,W,3], RGB; it may be a read-only view, so nobody writes into it. boxes: float32
    [G,4], xyxy, normalised to 0..1. labels: int64 [G], class 0..C-1, or `uhd.types.IGNORED` for a
    truth that an augmentation took away.
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
