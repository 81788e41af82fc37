"""Ops that change colours and leave every pixel where it is."""

from uhd.augment.photometric.blur import Blur, GaussianBlur, MedianBlur, MotionBlur
from uhd.augment.photometric.color import (
    CLAHE,
    Distortion,
    RandomBrightness,
    RandomContrast,
    RandomHSV,
    RandomPhotometricDistort,
    RandomSaturation,
    ToGray,
    distort,
    scale_hsv,
)
from uhd.augment.photometric.noise import GaussNoise, ImageCompression, ISONoise
from uhd.augment.photometric.weather import RandomFog, RandomRain, RandomSunFlare

__all__ = [
    "CLAHE",
    "Blur",
    "Distortion",
    "GaussNoise",
    "GaussianBlur",
    "ISONoise",
    "ImageCompression",
    "MedianBlur",
    "MotionBlur",
    "RandomBrightness",
    "RandomContrast",
    "RandomFog",
    "RandomHSV",
    "RandomPhotometricDistort",
    "RandomRain",
    "RandomSaturation",
    "RandomSunFlare",
    "ToGray",
    "distort",
    "scale_hsv",
]
