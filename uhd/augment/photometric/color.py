"""Ops on the colour of each pixel.

Brightness, contrast, saturation and hue are torchvision's functions of those names to within
rounding. albumentations has them too (`adjust_brightness_torchvision`, ...), but takes two to five
times as long on a 64x64 picture, and these ops run on most pictures of the default file.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from uhd.augment.params import number, number_range, param, whole_number_pair
from uhd.augment.photometric.base import AlbumentationsOp, PhotometricOp, pixel_functions
from uhd.augment.sample import Image

# Shares of red, green and blue in the grey level (ITU-R BT.601), as OpenCV and torchvision have them.
_GREY = np.array((0.299, 0.587, 0.114))
_IDENTITY = np.eye(3)
# OpenCV keeps the hue of an 8-bit picture in steps of two degrees.
_HUE_LEVELS = 180


def adjust_brightness(image: Image, factor: float) -> Image:
    """Multiplies the levels of an image, uint8 [H,W,3], by a factor >= 0."""
    adjusted: Image = cv2.convertScaleAbs(image, alpha=factor)
    return adjusted


def adjust_contrast(image: Image, factor: float) -> Image:
    """Multiplies the distance of the levels of an image, uint8 [H,W,3] RGB, from its mean grey by a factor >= 0."""
    grey = float(_GREY @ cv2.mean(image)[:3])
    adjusted: Image = cv2.addWeighted(image, factor, image, 0, (1 - factor) * grey)
    return adjusted


def adjust_saturation(image: Image, factor: float) -> Image:
    """Multiplies the distance of each pixel of an image, uint8 [H,W,3] RGB, from its own grey by a factor >= 0."""
    adjusted: Image = cv2.transform(image, factor * _IDENTITY + (1 - factor) * _GREY)
    return adjusted


def adjust_hue(image: Image, turn: float) -> Image:
    """Turns the hue of an image, uint8 [H,W,3] RGB, by a share of the colour circle, -0.5..0.5."""
    # Of 256 steps, so that the addition goes round the circle by itself.
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(round(turn * 256) % 256)
    adjusted: Image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)
    return adjusted


@dataclass(frozen=True)
class FactorOp(PhotometricOp):
    """An op whose strength is one factor, drawn from factor_range; 1 changes nothing."""

    factor_range: tuple[float, float] = param((0.8, 1.2), number_range(0, 10))

    @abstractmethod
    def adjust(self, image: Image, factor: float) -> Image:
        """The image, uint8 [H,W,3] RGB, changed by the factor."""

    def change_colors(self, image: Image, rng: np.random.Generator) -> Image:
        """The image changed by a random factor."""
        return self.adjust(image, rng.uniform(*self.factor_range))


@dataclass(frozen=True)
class RandomBrightness(FactorOp):
    """Multiplies all levels by a random factor; 0 is black."""

    def adjust(self, image: Image, factor: float) -> Image:
        """The image made brighter or darker."""
        return adjust_brightness(image, factor)


@dataclass(frozen=True)
class RandomContrast(FactorOp):
    """Multiplies the distance from the picture's mean grey by a random factor; 0 is that grey."""

    def adjust(self, image: Image, factor: float) -> Image:
        """The image with more or less contrast."""
        return adjust_contrast(image, factor)


@dataclass(frozen=True)
class RandomSaturation(FactorOp):
    """Multiplies each pixel's distance from its own grey by a random factor; 0 is a grey picture."""

    def adjust(self, image: Image, factor: float) -> Image:
        """The image with more or less colour."""
        return adjust_saturation(image, factor)


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
    """Applies a distortion to an image, uint8 [H,W,3] RGB, which is returned itself where nothing is to be done."""
    if distortion.brightness != 1:
        image = adjust_brightness(image, distortion.brightness)
    if distortion.contrast_first and distortion.contrast != 1:
        image = adjust_contrast(image, distortion.contrast)
    if distortion.saturation != 1:
        image = adjust_saturation(image, distortion.saturation)
    if distortion.hue != 0:
        image = adjust_hue(image, distortion.hue)
    if not distortion.contrast_first and distortion.contrast != 1:
        image = adjust_contrast(image, distortion.contrast)
    if distortion.channels is not None:
        # A product with a permuted identity takes half of the time of indexing.
        image = cv2.transform(image, _IDENTITY[distortion.channels])
    return image


@dataclass(frozen=True)
class RandomPhotometricDistort(PhotometricOp):
    """Random brightness, contrast, saturation, hue and order of the channels, each half of the time.

    As in SSD (Liu et al., arXiv:1512.02325, section 2.2); the ranges are those of torchvision's
    `RandomPhotometricDistort`.
    """

    prob: float = param(0.5, number(0, 1))

    def change_colors(self, image: Image, rng: np.random.Generator) -> Image:
        """The image with a random distortion."""
        chosen = (rng.random(6) < 0.5).tolist()
        brightness, contrast, saturation, hue = rng.uniform(-1, 1, 4).tolist()
        distortion = Distortion(
            brightness=1 + 0.125 * brightness if chosen[0] else 1.0,
            contrast=1 + 0.5 * contrast if chosen[1] else 1.0,
            saturation=1 + 0.5 * saturation if chosen[2] else 1.0,
            hue=0.05 * hue if chosen[3] else 0.0,
            contrast_first=chosen[4],
            channels=rng.permutation(3).tolist() if chosen[5] else None,
        )
        return distort(image, distortion)


def scale_hsv(image: Image, factors: NDArray[np.float64]) -> Image:
    """Multiplies hue, saturation and value of an image, uint8 [H,W,3] RGB, by factors [3], 0..2.

    Hue goes round the circle; saturation and value stop at their largest level. albumentations can
    only shift them.
    """
    hue, saturation, value = factors.tolist()
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    if hue * (_HUE_LEVELS - 1) > 255:
        # Beyond what a byte holds the circle is closed here; below, the way back to RGB does it.
        turned = np.arange(256) * hue % _HUE_LEVELS
        hsv[..., 0] = cv2.LUT(hsv[..., 0], turned.astype(np.uint8))
        hue = 1.0
    hsv = cv2.transform(hsv, np.array(((hue, 0, 0), (0, saturation, 0), (0, 0, value))))
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
        return scale_hsv(image, 1 + gains * rng.uniform(-1, 1, 3))


@dataclass(frozen=True)
class CLAHE(AlbumentationsOp):
    """Contrast limited adaptive histogram equalisation of the lightness (Zuiderveld, Graphics Gems IV, 1994).

    clip_limit: largest bin of a tile's histogram, in multiples of a flat one. tile_grid_size: tiles
    across and down the picture.
    """

    clip_limit: float = param(2.0, number(0, 256))
    tile_grid_size: tuple[int, int] = param((8, 8), whole_number_pair(1, 256))

    def change_colors(self, image: Image, rng: np.random.Generator) -> Image:
        """The image with its lightness equalised."""
        equalised: Image = pixel_functions().clahe(image, self.clip_limit, self.tile_grid_size)
        return equalised


@dataclass(frozen=True)
class ToGray(PhotometricOp):
    """Turns the picture grey; it keeps three channels, all alike."""

    def change_colors(self, image: Image, rng: np.random.Generator) -> Image:
        """The grey image."""
        # Not by albumentations, whose to_gray loses an axis of a picture one pixel high or wide.
        grey: Image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        return grey
