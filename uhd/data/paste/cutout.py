"""A target as it is pasted: mirrored, resized, turned, its edge softened, and where it is solid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
RGBA = NDArray[np.uint8]

_MOST_FEATHER = 0.01
"""Share of the longer side: a wider edge would take away arms and legs."""
_FINE_SIDE = 1024
"""Up to this longer side a target is turned at twice its size: turning it costs sharpness."""


class Pose(NamedTuple):
    """How a target is shown: longer side in pixels, before it is turned by degrees, and how it is mirrored."""

    side: float
    degrees: float = 0.0
    mirror_x: bool = False
    mirror_y: bool = False


class Box(NamedTuple):
    """Pixels x1 <= x < x2, y1 <= y < y2."""

    x1: int
    y1: int
    x2: int
    y2: int


@dataclass(frozen=True)
class Cutout:
    """colors [h,w,3] RGB 0..255, not multiplied by alpha; alpha [h,w] 0..1; solid [h,w] where alpha counts.

    At least one pixel is solid.
    """

    colors: Floats
    alpha: Floats
    solid: Mask


def cut_out(rgba: RGBA, pose: Pose, feather: float, threshold: float) -> Cutout | None:
    """Brings a target [h,w,4] into its pose; None where nothing solid remains of it.

    feather: deviation in pixels of the blur that softens the edge. threshold: alpha from which a pixel is solid, and
    belongs to the target whose side the pose gives.
    """
    seen = box_of(rgba[..., 3] >= 255 * threshold)
    if seen is None:
        return None
    scale = pose.side / max(seen.x2 - seen.x1, seen.y2 - seen.y1)
    fine = 2 if pose.degrees and pose.side <= _FINE_SIDE else 1
    premultiplied = _premultiplied(_trimmed(rgba, seen))
    if pose.mirror_x:
        premultiplied = cv2.flip(premultiplied, 1)
    if pose.mirror_y:
        premultiplied = cv2.flip(premultiplied, 0)
    shown = _resized(premultiplied, scale * fine)
    if pose.degrees:
        shown = _turned(shown, pose.degrees)
        shown = cv2.resize(shown, (shown.shape[1] // fine, shown.shape[0] // fine), interpolation=cv2.INTER_AREA)
    alpha = shown[..., 3].astype(np.float32) / np.float32(255)
    colors = shown[..., :3] / np.maximum(alpha, np.float32(1 / 255))[..., None]
    alpha = _feathered(alpha, min(feather, _MOST_FEATHER * pose.side))
    solid = alpha >= threshold
    kept = box_of(alpha > 0)
    if kept is None or not solid.any():
        return None
    part = slice(kept.y1, kept.y2), slice(kept.x1, kept.x2)
    return Cutout(np.minimum(colors[part], np.float32(255)), alpha[part], solid[part])


def box_of(mask: Mask) -> Box | None:
    """The smallest box around the True pixels of [h,w]; None where there is none."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(columns):
        return None
    return Box(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def _trimmed(rgba: RGBA, solid: Box) -> RGBA:
    """Without the borders of which nothing is seen, or what is far from the solid part.

    Programs that remove backgrounds leave traces all over; to enlarge them with a small target takes gigabytes.
    """
    box = box_of(rgba[..., 3] > 0)
    assert box is not None
    margin = max(solid.x2 - solid.x1, solid.y2 - solid.y1)
    rows = slice(max(box.y1, solid.y1 - margin), min(box.y2, solid.y2 + margin))
    columns = slice(max(box.x1, solid.x1 - margin), min(box.x2, solid.x2 + margin))
    return rgba[rows, columns]


def _premultiplied(rgba: RGBA) -> RGBA:
    """Colours multiplied by alpha, so that those of invisible pixels do not mix in when pixels are averaged."""
    result = rgba.copy()
    result[..., :3] = (rgba[..., :3].astype(np.uint16) * rgba[..., 3:] + 127) // 255
    return result


def _resized(image: RGBA, scale: float) -> RGBA:
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    if size == (image.shape[1], image.shape[0]):
        return image
    resized: RGBA = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return resized


def _turned(image: RGBA, degrees: float) -> RGBA:
    """Turned about its centre, counter-clockwise, on a canvas of even sides that holds all of it."""
    height, width = image.shape[:2]
    angle = math.radians(degrees)
    cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
    # A pixel more on each side: interpolation reaches beyond the corners.
    across, down = (2 * math.ceil((side + 2) / 2) for side in (width * cos + height * sin, width * sin + height * cos))
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    # OpenCV puts a pixel's centre at its whole number.
    before, after = np.array([width - 1, height - 1]) / 2, np.array([across - 1, down - 1]) / 2
    matrix = np.column_stack([turn, after - turn @ before])
    turned: RGBA = cv2.warpAffine(image, matrix, (across, down), flags=cv2.INTER_LINEAR, borderValue=(0, 0, 0, 0))
    return turned


def _feathered(alpha: Floats, sigma: float) -> Floats:
    """An edge that rises inwards over about two sigma; nothing outside of the old one becomes visible.

    A blurred edge is one half where it was hard, so that the upper half of the blur lies inside.
    """
    if sigma <= 0:
        return alpha
    # Beyond the array there is nothing: a target that is cut off by its own file has an edge there too.
    blurred = cv2.GaussianBlur(alpha, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
    softened: Floats = np.minimum(alpha, np.clip(2 * blurred - 1, 0, 1)).astype(np.float32)
    return softened
