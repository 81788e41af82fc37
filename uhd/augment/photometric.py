"""Ops that change colours and leave every pixel where it is."""

from __future__ import annotations

import functools
import os
from abc import abstractmethod
from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from uhd.augment.pipeline import Op, number, param, whole_number_pair
from uhd.augment.sample import Sample

Image = NDArray[np.uint8]

_LEVELS = np.arange(256, dtype=np.float32)[:, None]
# OpenCV keeps the hue of an 8-bit picture in steps of two degrees.
_HUE_LEVELS = 180


@functools.cache
def _albumentations() -> ModuleType:
    """The pixel functions of albumentations.

    Its import takes seconds (scipy, pydantic, torch), so it waits until an op that needs it is
    built: early enough for workers forked later to share it. The functions are called without the
    transform classes around them, which draw from random numbers of their own and cost several
    times the arithmetic on a 64x64 picture.
    """
    # Without this the import asks PyPI for a newer version.
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations.augmentations.pixel.functional as pixel

    module: ModuleType = pixel
    return module


@dataclass(frozen=True)
class PhotometricOp(Op):
    """An op on the image alone."""

    @abstractmethod
    def change_colors(self, image: Image, rng: np.random.Generator) -> Image:
        """The changed image, uint8 [H,W,3] RGB like the given one, which stays as it is."""

    def apply(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The sample with its image changed."""
        return Sample(self.change_colors(sample.image, rng), sample.boxes, sample.labels)


class Distortion(NamedTuple):
    """Strengths of a photometric distortion; the defaults change nothing.

    brightness, contrast, saturation: factors >= 0, 1 is off. hue: share of the colour circle,
    -0.5..0.5. contrast_first: contrast before saturation and hue, or after. channels: the order of
    the colour channels, None keeps it.
    """

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    contrast_first: bool = True
    channels: list[int] | None = None


def distort(image: Image, distortion: Distortion) -> Image:
    """Applies a distortion to an image, uint8 [H,W,3] RGB.

    Each step is torchvision's function of that name (`adjust_brightness`, ...) to within rounding.
    """
    pixel = _albumentations()
    image = pixel.adjust_brightness_torchvision(image, distortion.brightness)
    if distortion.contrast_first:
        image = pixel.adjust_contrast_torchvision(image, distortion.contrast)
    image = pixel.adjust_saturation_torchvision(image, distortion.saturation)
    image = pixel.adjust_hue_torchvision(image, distortion.hue)
    if not distortion.contrast_first:
        image = pixel.adjust_contrast_torchvision(image, distortion.contrast)
    if distortion.channels is not None:
        image = pixel.channel_shuffle(image, distortion.channels)
    return image


@dataclass(frozen=True)
class RandomPhotometricDistort(PhotometricOp):
    """Random brightness, contrast, saturation, hue and order of the channels, each half of the time.

    As in SSD (Liu et al., arXiv:1512.02325, section 2.2); the ranges are those of torchvision's
    `RandomPhotometricDistort`.
    """

    prob: float = param(0.5, number(0, 1))

    def __post_init__(self) -> None:
        if self.prob > 0:
            _albumentations()

    def change_colors(self, image: Image, rng: np.random.Generator) -> Image:
        """The image with a random distortion."""
        chosen = rng.random(6) < 0.5
        brightness, contrast, saturation, hue = rng.random(4).tolist()
        distortion = Distortion(
            brightness=0.875 + 0.25 * brightness if chosen[0] else 1.0,
            contrast=0.5 + contrast if chosen[1] else 1.0,
            saturation=0.5 + saturation if chosen[2] else 1.0,
            hue=0.1 * hue - 0.05 if chosen[3] else 0.0,
            contrast_first=bool(chosen[4]),
            channels=rng.permutation(3).tolist() if chosen[5] else None,
        )
        return distort(image, distortion)


def scale_hsv(image: Image, factors: NDArray[np.float64]) -> Image:
    """Multiplies hue, saturation and value of an image, uint8 [H,W,3] RGB, by factors [3] >= 0.

    Hue goes round the circle; saturation and value stop at their largest level. This is done by one
    table of the 256 levels of each channel, because albumentations only shifts them.
    """
    table = _LEVELS * factors
    table[:, 0] %= _HUE_LEVELS
    levels = np.minimum(table, 255).astype(np.uint8)
    hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), levels[None])
    scaled: Image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return scaled


@dataclass(frozen=True)
class RandomHSV(PhotometricOp):
    """Multiplies hue, saturation and value by random factors from 1 - gain to 1 + gain, as YOLOv5 does."""

    hue_gain: float = param(0.0, number(0, 1))
    saturation_gain: float = param(0.0, number(0, 1))
    value_gain: float = param(0.0, number(0, 1))

    def change_colors(self, image: Image, rng: np.random.Generator) -> Image:
        """The image with its hue, saturation and value scaled."""
        gains = np.array((self.hue_gain, self.saturation_gain, self.value_gain))
        return scale_hsv(image, 1 + gains * (2 * rng.random(3) - 1))


@dataclass(frozen=True)
class CLAHE(PhotometricOp):
    """Contrast limited adaptive histogram equalisation of the lightness (Zuiderveld, Graphics Gems IV, 1994).

    clip_limit: largest bin of a tile's histogram, in multiples of a flat one. tile_grid_size: tiles
    across and down the picture.
    """

    clip_limit: float = param(2.0, number(0, 256))
    tile_grid_size: tuple[int, int] = param((8, 8), whole_number_pair(1, 256))

    def __post_init__(self) -> None:
        if self.prob > 0:
            _albumentations()

    def change_colors(self, image: Image, rng: np.random.Generator) -> Image:
        """The image with its lightness equalised."""
        equalised: Image = _albumentations().clahe(image, self.clip_limit, self.tile_grid_size)
        return equalised
