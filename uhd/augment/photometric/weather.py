"""Ops that show weather. Lengths are in pixels of a 640x640 picture and scale with the working size.

The functions of albumentations for these are made for large pictures: drops are at least a pixel
wide, a sun has one ring for every ten pixels of its radius (none at 64x64), fog is hundreds of
discs, each mixed into the whole picture. Here each op makes one map of how much of every pixel is
covered, float32 [H,W], and mixes once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from uhd.augment.params import number_range, param
from uhd.augment.photometric.base import PhotometricOp
from uhd.augment.sample import Image, length_scale

_WHITE = 255
# As in albumentations' RandomRain.
_DROP_LEVEL = 200
_DROP_OPACITY = 0.7
# Side of the patches of fog, in pixels of a 640x640 picture, and how much denser the densest are than the mean.
_FOG_PATCH = 160
_FOG_VARIATION = 0.4


def _cover(image: Image, shares: NDArray[np.float32], level: int) -> Image:
    """The image mixed with a grey level, of which each pixel gets its share [H,W], 0..1."""
    mixed: Image = cv2.blendLinear(image, np.full_like(image, level), 1 - shares, shares)
    return mixed


@dataclass(frozen=True)
class RandomRain(PhotometricOp):
    """Draws streaks of rain, all of one length and slant.

    density: range of the number of drops for each pixel of a 640x640 picture, whatever the working
    size. drop_length, drop_width_range: ranges of the streaks' length and width in pixels of such
    a picture. slant_range: range of their angle from the vertical in degrees, positive to the right
    on the way down.
    """

    density: tuple[float, float] = param((0.002, 0.006), number_range(0, 0.1))
    drop_length: tuple[float, float] = param((15.0, 30.0), number_range(0, 100))
    drop_width_range: tuple[float, float] = param((1.0, 2.0), number_range(0, 10))
    slant_range: tuple[float, float] = param((-10.0, 10.0), number_range(-45, 45))

    def change_colors(self, image: Image, rng: np.random.Generator) -> Image:
        """The image in random rain."""
        density, length = rng.uniform(*self.density), rng.uniform(*self.drop_length)
        width, slant = rng.uniform(*self.drop_width_range), math.radians(rng.uniform(*self.slant_range))
        height_px, width_px = image.shape[:2]
        scale = length_scale(image)
        # A drop is a fraction of a pixel wide, so it is drawn on a canvas of about 640x640 and reduced.
        finer = max(1, round(1 / scale))
        unit = finer * scale
        drops = _draw_drops(
            (height_px * finer, width_px * finer), density / unit**2, length * unit, width * unit, slant, rng
        )
        shares = cv2.resize(drops, (width_px, height_px), interpolation=cv2.INTER_AREA)
        return _cover(image, shares * np.float32(_DROP_OPACITY / 255), _DROP_LEVEL)


def _draw_drops(
    size: tuple[int, int], density: float, length: float, width: float, slant: float, rng: np.random.Generator
) -> Image:
    """A map uint8 [H,W] of how much of each pixel is covered by drops, 0..255.

    size: (H, W). density: drops for each pixel. length, width: in pixels. slant: radians, at most
    45 degrees, so that a drop has one pixel in each row that it crosses: lines are drawn by index,
    several times as fast as by OpenCV.
    """
    rows = np.arange(max(1, round(length * math.cos(slant))))
    columns = np.rint(rows * math.tan(slant)).astype(np.intp)
    columns -= columns.min()
    layers = max(1, math.ceil(width))
    # Drops start within a margin of the size of one, so that they are as dense at the edges, and end in another.
    margin_y, margin_x = rows.size, int(columns.max()) + layers
    height, stride = size[0] + 2 * margin_y, size[1] + 2 * margin_x
    canvas = np.zeros((height, stride), np.uint8)
    starts_y, starts_x = size[0] + margin_y, size[1] + margin_x
    count = round(density * starts_y * starts_x)
    starts = rng.integers(0, starts_y, count) * stride + rng.integers(0, starts_x, count)
    pixels = starts[:, None] + (rows * stride + columns)
    for layer in range(layers):
        # A width of 1.4 pixels is 2 in 4 of 10 drops; one below a pixel is a pixel that is covered in part.
        wide = pixels if layer == 0 else pixels[: round(count * min(width - layer, 1))]
        canvas.reshape(-1)[wide + layer] = round(255 * min(width, 1))
    return canvas[margin_y : margin_y + size[0], margin_x : margin_x + size[1]]


@dataclass(frozen=True)
class RandomFog(PhotometricOp):
    """Mixes the picture with white, in soft patches. fog_coef: range of the mean share of white, 0..1."""

    fog_coef: tuple[float, float] = param((0.3, 0.6), number_range(0, 1))

    def change_colors(self, image: Image, rng: np.random.Generator) -> Image:
        """The image in fog of a random density."""
        coefficient = rng.uniform(*self.fog_coef)
        height, width = image.shape[:2]
        patch = _FOG_PATCH * length_scale(image)
        cells = (math.ceil(height / patch) + 1, math.ceil(width / patch) + 1)
        variation = cv2.resize(rng.random(cells, np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
        shares = coefficient * (1 + _FOG_VARIATION * (2 * variation - 1))
        return _cover(image, np.clip(shares, 0, 1, dtype=np.float32), _WHITE)


@dataclass(frozen=True)
class RandomSunFlare(PhotometricOp):
    """A white sun in the upper half of the picture, and the discs that its light leaves in the lens.

    src_radius_range: range of the radius at which the sun's glow ends, in pixels of a 640x640
    picture. src_intensity: range of the share of white in the middle of the sun, 0..1.
    """

    src_radius_range: tuple[float, float] = param((50.0, 150.0), number_range(0, 1000))
    src_intensity: tuple[float, float] = param((0.6, 1.0), number_range(0, 1))

    def change_colors(self, image: Image, rng: np.random.Generator) -> Image:
        """The image with a flare of a random size and strength."""
        radius = rng.uniform(*self.src_radius_range) * length_scale(image)
        intensity = rng.uniform(*self.src_intensity)
        middle = np.array((image.shape[1] / 2, image.shape[0] / 2))
        sun = 2 * middle * rng.random(2) * (1, 0.5)
        shares = np.zeros(image.shape[:2], np.float32)
        # On a straight line from the sun through the middle of the picture, as lenses throw them.
        for along, size, strength in rng.random((rng.integers(6, 11), 3)).tolist():
            place = sun + 2 * along * (middle - sun)
            _add_disc(shares, place, radius * (0.05 + 0.3 * size), intensity * (0.05 + 0.15 * strength), glow=False)
        _add_disc(shares, sun, radius, intensity, glow=True)
        return _cover(image, shares, _WHITE)


def _add_disc(
    shares: NDArray[np.float32], center: NDArray[np.float64], radius: float, strength: float, glow: bool
) -> None:
    """Puts light over shares [H,W], in place: fading from center (x, y) to radius (pixels), or even with a soft rim."""
    if radius <= 0:
        return
    left, top = np.maximum(center - radius, 0).astype(int).tolist()
    right, bottom = np.ceil(center + radius).astype(int).clip(0).tolist()
    window = shares[top:bottom, left:right]
    y, x = np.ogrid[top : top + window.shape[0], left : left + window.shape[1]]
    inside = np.maximum(1 - ((x + 0.5 - center[0]) ** 2 + (y + 0.5 - center[1]) ** 2) / radius**2, 0)
    light = strength * (inside**4 if glow else np.minimum(4 * inside, 1))
    window += (1 - window) * light
