"""Ops that add what a camera adds: noise, and the losses of JPEG."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from statistics import NormalDist

import cv2
import numpy as np
from numpy.typing import NDArray

from uhd.augment.params import number, number_range, param
from uhd.augment.photometric.base import PhotometricOp
from uhd.augment.sample import Image


@functools.cache
def _normal_quantiles() -> NDArray[np.float32]:
    """The standard normal distribution cut into 65536 equally likely parts, and the middle of each."""
    normal = NormalDist()
    return np.array([normal.inv_cdf((i + 0.5) / 65536) for i in range(65536)], np.float32)


@dataclass(frozen=True)
class GaussNoise(PhotometricOp):
    """Adds normal noise to each channel of each pixel.

    mean: of the noise, in grey levels. var_limit: range of its variance, in grey levels squared.
    """

    mean: float = param(0.0, number(-255, 255))
    var_limit: tuple[float, float] = param((10.0, 50.0), number_range(0, 255**2))

    def __post_init__(self) -> None:
        if self.prob > 0:
            _normal_quantiles()

    def change_colors(self, image: Image, rng: np.random.Generator) -> Image:
        """The image with noise of a random variance."""
        deviation = rng.uniform(*self.var_limit) ** 0.5
        # Two random bytes that choose a quantile take a quarter of the time of numpy's normal numbers, and whole
        # grey levels do not show the difference.
        noise = _normal_quantiles().take(rng.integers(0, 65536, image.shape, dtype=np.uint16))
        noisy: Image = cv2.addWeighted(image, 1.0, noise, deviation, self.mean, dtype=cv2.CV_8U)
        return noisy


@dataclass(frozen=True)
class ISONoise(PhotometricOp):
    """The noise of a camera at a high ISO number: Poisson noise of the lightness, normal noise of the hue.

    The arithmetic is that of albumentations 1.4. Release 2.0 takes its numbers for 0..1 where they
    were grey levels and degrees, so that lightness changes in stray pixels only and hue by
    thousandths of a degree.
    intensity: range of the factor on both noises; the Poisson noise has the mean intensity times
    the standard deviation of the picture's lightness, and is weaker where the picture is light.
    color_shift: range of the hue noise's standard deviation, as a share of the colour circle.
    """

    intensity: tuple[float, float] = param((0.05, 0.15), number_range(0, 1))
    color_shift: tuple[float, float] = param((0.01, 0.05), number_range(0, 1))

    def change_colors(self, image: Image, rng: np.random.Generator) -> Image:
        """The image with noise of a random strength."""
        intensity, color_shift = rng.uniform(*self.intensity), rng.uniform(*self.color_shift)
        hls = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2HLS)
        hue, lightness = hls[..., 0], hls[..., 1]
        deviation = 255 * float(cv2.meanStdDev(hls)[1][1, 0])
        grains = rng.poisson(deviation * intensity, lightness.shape)
        hue += rng.standard_normal(hue.shape, np.float32) * np.float32(360 * color_shift * intensity)
        hue %= 360
        lightness += np.minimum(grains / 255, 1) * (1 - lightness)
        noisy: Image = cv2.convertScaleAbs(cv2.cvtColor(hls, cv2.COLOR_HLS2RGB), alpha=255)
        return noisy


@dataclass(frozen=True)
class ImageCompression(PhotometricOp):
    """Writes the picture as a JPEG and reads it again. quality_range: range of the quality, 1 (worst) to 100."""

    quality_range: tuple[float, float] = param((40.0, 90.0), number_range(1, 100))

    def change_colors(self, image: Image, rng: np.random.Generator) -> Image:
        """The image after a JPEG of a random quality."""
        quality = round(rng.uniform(*self.quality_range))
        # albumentations hands red to the encoder as blue, which changes what JPEG takes for lightness.
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        encoded = cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, quality))[1]
        compressed: Image = cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        return compressed
