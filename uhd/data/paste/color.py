"""The colours of a target moved towards those of its surroundings."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from uhd.data.paste.cutout import Cutout, Floats

_DEVIATION_RATIOS = (0.5, 2.0)
"""What a target's contrast may be multiplied by: on a plain wall it keeps its shape, on a busy one its face."""


def match_colors(cutout: Cutout, around: NDArray[np.uint8], strength: float) -> Floats:
    """The cut-out's colours [h,w,3] RGB 0..255, moved by strength (0..1) towards those of around [m,k,3] RGB.

    Mean and deviation of lightness and of the two colour axes of CIE Lab, as Reinhard et al. do (Color transfer between
    images, 2001); only the solid pixels count.
    """
    if not strength or not around.size:
        return cutout.colors
    lab = _to_lab(cutout.colors)
    own, other = lab[cutout.solid], _to_lab(around.astype(np.float32)).reshape(-1, 3)
    ratio = np.clip(other.std(axis=0) / np.maximum(own.std(axis=0), 1e-3), *_DEVIATION_RATIOS)
    moved = (lab - own.mean(axis=0)) * ratio + other.mean(axis=0)
    mixed = (lab + strength * (moved - lab)).astype(np.float32)
    rgb = cv2.cvtColor(mixed, cv2.COLOR_Lab2RGB)
    colors: Floats = np.clip(rgb * np.float32(255), 0, 255)
    return colors


def _to_lab(rgb: Floats) -> Floats:
    lab: Floats = cv2.cvtColor(rgb / np.float32(255), cv2.COLOR_RGB2Lab)
    return lab
