"""Sketches of convex polygons in metres, and the sprites that they become in a picture."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

Colour = tuple[int, int, int]
"""RGB, 0-255."""
Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""xyxy."""
FloatArray = NDArray[np.float64]
Image = NDArray[np.uint8]

SUPERSAMPLING = 2
"""A canvas has this many pixels a side (a power of two) for each pixel of the picture; rendering averages them."""
_SUBPIXEL_BITS = 4
_SUBPIXELS = 1 << _SUBPIXEL_BITS
# The same integers, read with a bit less for each doubling, are coordinates on the canvas.
_CANVAS_BITS = _SUBPIXEL_BITS - (SUPERSAMPLING.bit_length() - 1)

_TURNS = np.linspace(0.0, 2.0 * math.pi, 20, endpoint=False)
_UNIT_CIRCLE: FloatArray = np.stack([np.cos(_TURNS), np.sin(_TURNS)], axis=1)
_CAP_STEPS: FloatArray = np.linspace(0.0, 1.0, 8)

_T = TypeVar("_T")


def pick(rng: np.random.Generator, options: Sequence[_T]) -> _T:
    """One of the options, all equally likely."""
    return options[int(rng.integers(len(options)))]


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """RGB of a hue (in turns, any real), a saturation and a value (both clipped to 0-1)."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))
    return round(255 * red), round(255 * green), round(255 * blue)


def shade(colour: Colour, factor: float) -> Colour:
    """The colour made darker (factor below 1) or lighter (above 1)."""
    red, green, blue = colour
    return min(255, round(red * factor)), min(255, round(green * factor)), min(255, round(blue * factor))


@dataclass(frozen=True)
class Sprite:
    """Convex polygons in the pixels of a picture, in painting order.

    points [n,2] are all corners, int32 sixteenths of a pixel measured from the picture's upper left
    corner; polygon i is points[ends[i-1]:ends[i]] (the first from 0) and has colours[i].
    """

    points: NDArray[np.int32]
    ends: tuple[int, ...]
    colours: tuple[Colour, ...]

    def box(self) -> Box:
        """The smallest box around all polygons, in pixels, not clipped to the picture."""
        left, top, width, height = cv2.boundingRect(self.points)  # counts the last point's own pixel
        return (
            left / _SUBPIXELS,
            top / _SUBPIXELS,
            (left + width - 1) / _SUBPIXELS,
            (top + height - 1) / _SUBPIXELS,
        )

    def paint(self, canvas: Image) -> None:
        """Draws the polygons on a canvas [H*SUPERSAMPLING, W*SUPERSAMPLING, 3] in place."""
        # cv2 counts from the middle of the first pixel, we from its corner.
        points = self.points - _SUBPIXELS // 2 // SUPERSAMPLING
        start = 0
        for end, colour in zip(self.ends, self.colours, strict=True):
            cv2.fillConvexPoly(canvas, points[start:end], colour, cv2.LINE_8, _CANVAS_BITS)
            start = end

    def silhouette(self, origin: tuple[int, int], size: tuple[int, int]) -> Image:
        """The mask [height, width] (0 or 255) of what lies in the window at origin (x, y) of size (width, height)."""
        mask: Image = np.zeros((size[1], size[0]), np.uint8)
        points = self.points - (np.array(origin, np.int32) * _SUBPIXELS + _SUBPIXELS // 2)
        start = 0
        for end in self.ends:
            cv2.fillConvexPoly(mask, points[start:end], 255, cv2.LINE_8, _SUBPIXEL_BITS)
            start = end
        return mask


class Sketch:
    """Convex polygons in metres: x to the right, y up, the ground at y = 0 and the middle at x = 0."""

    def __init__(self) -> None:
        self._polygons: list[FloatArray] = []
        self._colours: list[Colour] = []

    def polygon(self, points: Sequence[Point] | FloatArray, colour: Colour) -> None:
        """Adds a convex polygon [k,2]."""
        self._polygons.append(np.asarray(points, np.float64))
        self._colours.append(colour)

    def rectangle(self, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        """Adds an upright rectangle between two corners."""
        self.polygon(((x0, y0), (x1, y0), (x1, y1), (x0, y1)), colour)

    def ellipse(self, centre: Point, radii: Point, colour: Colour) -> None:
        """Adds an upright ellipse."""
        self.polygon(_UNIT_CIRCLE * radii + centre, colour)

    def dome(self, centre: Point, radii: Point, colour: Colour) -> None:
        """Adds the upper half of an ellipse."""
        self.polygon(_UNIT_CIRCLE[: len(_UNIT_CIRCLE) // 2 + 1] * radii + centre, colour)

    def limb(self, start: Point, end: Point, radii: Point, colour: Colour) -> None:
        """Adds the hull of two circles: around start with radii[0], around end with radii[1]."""
        self.polygon(limb_outline(start, end, radii), colour)

    def hull(self, outlines: Sequence[FloatArray], colour: Colour) -> None:
        """Adds the convex hull of several outlines [k,2]."""
        points = np.concatenate(outlines).astype(np.float32)
        self.polygon(cv2.convexHull(points)[:, 0].astype(np.float64), colour)

    def height(self) -> float:
        """The highest y, in metres."""
        return max(float(points[:, 1].max()) for points in self._polygons)

    def placed(self, foot: Point, scale: float, mirrored: bool = False) -> Sprite:
        """The sketch in a picture: (0, 0) at foot (pixels), scale pixels a metre."""
        axes = np.array([-scale if mirrored else scale, -scale])
        points = np.concatenate(self._polygons) * axes + foot
        ends = np.cumsum([len(polygon) for polygon in self._polygons]).tolist()
        return Sprite(np.rint(points * _SUBPIXELS).astype(np.int32), tuple(ends), tuple(self._colours))


def limb_outline(start: Point, end: Point, radii: Point) -> FloatArray:
    """The outline [16,2] of the hull of two circles; of the larger one alone where it holds the other."""
    run, rise = end[0] - start[0], end[1] - start[1]
    length = math.hypot(run, rise)
    if length <= abs(radii[0] - radii[1]):
        return _UNIT_CIRCLE * max(radii) + (start if radii[0] >= radii[1] else end)
    heading = math.atan2(rise, run)
    # The common tangents touch both circles at this angle from the line between the centres.
    tangent = math.acos((radii[0] - radii[1]) / length)
    near = radii[0] * np.exp(1j * (heading + tangent + _CAP_STEPS * (2.0 * math.pi - 2.0 * tangent)))
    far = radii[1] * np.exp(1j * (heading - tangent + _CAP_STEPS * (2.0 * tangent)))
    outline: FloatArray = np.concatenate([near + complex(*start), far + complex(*end)]).view(np.float64).reshape(-1, 2)
    return outline
